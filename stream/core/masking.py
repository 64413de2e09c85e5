"""Masks passwords in texts that are shown or logged: in URLs, in ``key=value`` words, and in sentences around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import unquote

MASK: Final = "***"

# libpq takes the password from the first colon after the user to an @; one that holds an @ is a typing error of the
# user's that must not show either, so everything up to the last @ goes.
_IN_URL: Final = re.compile(r"(://[^:@/\s]*):[^\s]*@")


def _any_spelling(word: str) -> str:
    """A pattern for ``word`` in either case, each letter possibly percent-encoded: libpq decodes names in a URL."""
    return "".join(f"(?:{c}|%{ord(c):02x}|%{ord(c.upper()):02x})" for c in word)


#: a value in quotes (also where the last is missing, or one inside is doubled), or up to a space; \ escapes
_AMONG_WORDS: Final = re.compile(
    rf"""((?<![a-z0-9_])(?:{_any_spelling("ssl")})?{_any_spelling("password")}\s*=\s*)"""
    r"""('(?:[^'\\]|\\.|'')*(?:'|\\?\Z)|(?:[^\s&"\\]|\\.)+)""",
    re.IGNORECASE | re.DOTALL,
)


def mask_passwords(text: str) -> str:
    """``text`` with every password replaced by ``***``."""
    return _AMONG_WORDS.sub(rf"\1{MASK}", _IN_URL.sub(rf"\1:{MASK}@", text))


def passwords_in(url: str) -> Iterator[str]:
    """Every spelling of the passwords in a libpq URL or key=value words: as written, and decoded."""
    for match in _IN_URL.finditer(url):
        written = match[0][len(match[1]) + 1 : -1]
        yield from {written, unquote(written)}
    for match in _AMONG_WORDS.finditer(url):
        written = match[2].removeprefix("'").removesuffix("'")
        yield from {written, unquote(written), re.sub(r"\\(.)", r"\1", written)}


def mask_values(value: Any, mask: Callable[[str], str]) -> Any:
    """``value`` with ``mask`` applied to every text in it: before it becomes JSON, whose quotes a mask could break."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: mask_values(inner, mask) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask_values(inner, mask) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float)) else mask(str(value))
