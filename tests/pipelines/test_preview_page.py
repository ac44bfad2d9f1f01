"""The page about packs: what is of the data is text, whatever it spells."""

from html.parser import HTMLParser
from typing import Any

from pipelines.preview_page import page

EVIL = "<script>alert(1)</script>"


def facts(**changes: Any) -> dict[str, Any]:
    sample = {
        "source": EVIL,
        "path": "a\" onclick='x'.jsonl",
        "record": 7,
        "begin": 0,
        "end": 4,
        "sample_token": 3,
        "documents": [0, 2],
        "tokens": [5, 6, 7, 8],
        "texts": [EVIL, "&lt;\n", "\u202e\x1b", ""],
        "trained": [[1, 3]],
    }
    whole = {"title": EVIL, "tokens": 4, "trained": 2, "why_no_text": "", "marked": 2, "samples": [sample | changes]}
    return whole | {key: value for key, value in changes.items() if key in whole}


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.tokens: list[tuple[str, str]] = []
        self.origin = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.attributes |= set(given)
        self.origin = given.get("data-origin") or self.origin
        if "data-id" in given:
            self._open = f"{tag}{given['data-id']} {given.get('class') or ''}".strip()
            self.tokens.append((self._open, ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.tokens[-1] = (self._open, self.tokens[-1][1] + data)


def test_tokens_titles_and_names_that_are_markup_stay_text() -> None:
    found = Parsed(page(EVIL, [facts()]))
    assert found.tags.count("script") == 1  # ours
    assert "onclick" not in found.attributes
    assert found.origin == f"{EVIL}/a\" onclick='x'.jsonl:7"
    assert found.tokens == [("i5", EVIL), ("b6", "&lt;↵\n"), ("b7 d m", r"\u202e\x1b"), ("i8", "")]


def test_without_texts_ids_are_shown_and_why_is_said() -> None:
    text = page("t", [facts(texts=None, why_no_text="no <tokenizer>", begin=0)])
    assert Parsed(text).tokens[0] == ("i5", "5 ")
    assert "token ids, as there is no &lt;tokenizer&gt;" in text
    assert "from its token 3 on" in text
    assert "attends to what is before it" not in text
    assert "attends to what is before it" in page("t", [facts(documents=[])])
