import pytest
import tomli

from pipelines.toml_syntax import explain

CASES = {
    "a = bf16": '1:5: bf16 is not a TOML value; text needs quotes: "bf16"',
    r"a = C:\x": r'1:5: C:\\x is not a TOML value; text needs quotes: "C:\\x"',
    "a = True": "1:5: True is not a TOML value; write true",
    "a = None": "1:5: None is not a TOML value; leave the key out",
    "a =": "1:4: the value is missing; write one after the equals sign",
    "a = 32k": "1:5: 32k is not a TOML number; write all its digits, without a unit",
    "b = 1\n  a = 1e": "2:7: 1e is not a TOML number; write all its digits, without a unit",
    "a = 0123": "1:5: 0123 is not a TOML number; write it without the leading 0",
    "a = .5": "1:5: .5 is not a TOML number; write a digit before the point",
    "a = 5.": "1:5: 5. is not a TOML number; write a digit after the point",
    "a = 1,000": "1:5: 1,000 is not a TOML number; digits may be grouped like 32_768",
    "a: 1": "1:2: expected = after the key, found a colon; write key = value",
    "a": "1:2: expected = and a value after the key",
    "= 1": "1:1: expected a key, a [table] or a # comment; other letters than A-Z in a key need quotes",
    "a = 1 b = 2": "1:7: expected the line to end after the value; one key a line",
    'a = "x" y': "1:9: expected the line to end after the value; one key a line",
    "[a]]": "1:4: expected the line to end after the table's name",
    "a = 1\rb = 2": "1:6: a carriage return without a line feed; save the file with LF at the ends of lines",
    'a = 1\nb = "x\nc = 2': "2:5: the text that begins here has no closing quote",
    'a = """x\n\ny': "1:5: the text that begins here has no closing quote",
    "a = 'x\n": "1:5: the text that begins here has no closing quote",
    'a = ["x", "y]': "1:11: the text that begins here has no closing quote",
    'a = 1\n"b = 2\nc = 3': "2:1: the text that begins here has no closing quote",
    "a = 1\n['b]": "2:2: the text that begins here has no closing quote",
    "a = [1,\n2": "1:5: the array that begins here has no closing bracket",
    "a = [1 2]": "1:8: expected a comma or ] here",
    "a = [1,\nb = 2": "2:1: expected a value, found a key; close the array or table before it",
    r'a = "\q"': r"1:8: a backslash begins an escape; write \\, or put the text in single quotes",
    'a = "C:\\users"': r"1:10: a backslash begins an escape; write \\, or put the text in single quotes",
    "a = 1\nb.c = 2\nb.c = 3": "3:3: b.c stood before, at 2:3; keep one",
    "[a]\nb = 1\n[a]\n": "3:2: a stood before, at 1:2; keep one",
    "[a]\n[[a]]\n": "2:3: a stood before, at 1:2; keep one",
    "a = {b = 1, b = 2}": "1:13: a.b stood before, at 1:6; keep one",
    "a = {b = 1}\n[a.c]": "2:4: a.c cannot be added to a, which is complete at 1:1; write it there",
    "a.b = 1\na.b.c = 2": "2:5: a.b.c cannot be added to a.b, which is complete at 1:3; write it there",
    "a = 1 # \x01": r"1:9: found invalid character '\x01'",
}


@pytest.mark.parametrize(("text", "line"), CASES.items())
def test_text_that_is_not_toml_is_explained_at_its_place(text: str, line: str) -> None:
    with pytest.raises(tomli.TOMLDecodeError) as caught:
        tomli.loads(text)
    spot, finding = explain(text, caught.value)
    assert f"{spot.line}:{spot.column}: {finding}" == line
