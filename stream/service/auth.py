"""Loopback check and constant-time token comparison for HTTP listeners."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress


def is_loopback(name: str) -> bool:
    """Whether a host name or address means this machine only."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def same_token(given: str, token: str) -> bool:
    """Whether ``given`` is the token, in time that does not depend on how much of it is right, nor on its length."""
    return hmac.compare_digest(_digest(given), _digest(token))


def _digest(word: str) -> bytes:
    return hashlib.sha256(word.encode("utf-8", "surrogateescape")).digest()
