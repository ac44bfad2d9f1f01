"""Text that is not UTF-8: what to say of it, and which encoding it looks like."""

import re

_GB2312 = re.compile(rb"(?:[\x00-\x7f]|[\xa1-\xf7][\xa1-\xfe])*")
"""Bytes of common Chinese text in GBK; a letter of a European encoding seldom has another one beside it."""
_FEW = 4
"""Bytes of it that may be chance."""


def not_utf8(text: bytes) -> str:
    """The finding about text that is not UTF-8, and the remedy.

    Args:
        text: a record or a line, whole.
    """
    finding = "not valid UTF-8; convert the file"
    if text.count(0) * 4 > len(text):
        return f"{finding}, which looks like UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW"
    if _GB2312.fullmatch(text) and sum(byte > 0x7F for byte in text) >= _FEW:
        return f"{finding}, which looks like GBK: iconv -f GB18030 -t UTF-8 OLD > NEW"
    return finding
