import pytest

from prep.formats.encoding import not_utf8

CHINESE = '{"instruction": "把它翻译成英文", "output": "好"}'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (CHINESE.encode("gbk"), "GBK: iconv -f GB18030 -t UTF-8"),
        (CHINESE.encode("utf-16"), "UTF-16: iconv -f UTF-16 -t UTF-8"),
        (CHINESE.encode("utf-16-be"), "UTF-16: iconv"),
        ('{"text": "déjà vu à Genève"}'.encode("latin-1"), ""),
        (CHINESE.encode("big5", "replace"), ""),
        (b'{"a": "\xe4"}', ""),
        (b"\xff\xfe", ""),
    ],
)
def test_encodings_that_many_files_are_in_are_named(text: bytes, named: str) -> None:
    found = not_utf8(text)
    assert found.startswith("not valid UTF-8; convert the file")
    assert named in found
    assert ("looks like" in found) == bool(named)
