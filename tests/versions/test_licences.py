"""The page of licences is that of what is installed, and none of them forbids our use."""

from email.message import EmailMessage
from importlib.metadata import PackageNotFoundError

import pytest

from tests.versions.licences import PAGE, forbidden, licence, page, rows


def test_the_page_is_current_and_no_licence_forbids_our_use() -> None:
    try:
        found = rows()
    except PackageNotFoundError as error:
        pytest.skip(f"{error} is not installed here")
    assert {row.name: row.licence for row in found if forbidden(row.licence)} == {}
    assert PAGE.read_text(encoding="utf-8") == page(found), "run `make licences`"


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("MIT", set()),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", set()),
        ("BSD-2-Clause AND Apache-2.0 WITH LLVM-exception", set()),
        ("MIT AND GPL-3.0-only", {"GPL-3.0-only"}),
        ("", {"unknown"}),
    ],
)
def test_what_forbids_our_use_is_named(expression: str, found: set[str]) -> None:
    assert forbidden(expression) == found


def test_a_licence_is_read_however_it_is_written() -> None:
    for field, said, expected in (
        ("License-Expression", "MIT AND Zlib", "MIT AND Zlib"),
        ("License", "Apache 2.0 License", "Apache-2.0"),
        ("Classifier", "License :: OSI Approved :: BSD License", "BSD"),
        ("License", "ask us", ""),
    ):
        metadata = EmailMessage()
        metadata["Name"] = "probe"
        metadata[field] = said
        assert licence(metadata) == expected  # type: ignore[arg-type]  # the part of it that is read
