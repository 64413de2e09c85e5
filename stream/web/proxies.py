"""X-Forwarded-* headers: believed from trusted proxies only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from stream.service.auth import is_loopback

_PREFIX: Final = re.compile(r"(/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~-]+)*\Z")
_LONGEST_PREFIX: Final = 200


def behind_proxies(app: ASGIApp, trusted: Sequence[str]) -> ASGIApp:
    """``app`` with client and scheme from X-Forwarded-For and -Proto, and ``scope["sentstream.prefix"]`` from -Prefix.

    ``trusted``: addresses, networks or `*`. For the prefix, which only shows up in what its sender receives, a proxy on
    this machine is trusted as well.
    """
    # uvicorn replaces the client in the scope: the prefix is read first
    inner = ProxyHeadersMiddleware(app, list(trusted)) if trusted else app  # type: ignore[arg-type]

    async def with_prefix(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = scope["client"][0] if scope.get("client") else None
            given = Headers(scope=scope).get("x-forwarded-prefix", "")
            scope = {**scope, "sentstream.prefix": forwarded_prefix(given, peer, trusted)}
        await inner(scope, receive, send)  # type: ignore[arg-type]

    return with_prefix


def forwarded_prefix(given: str, peer: str | None, trusted: Sequence[str]) -> str:
    """The path under which a proxy serves us; empty where it is no plain path or ``peer`` is not trusted."""
    prefix = given.rstrip("/")
    if not prefix or len(prefix) >= _LONGEST_PREFIX or not _PREFIX.match(prefix):
        return ""
    return prefix if peer is not None and (is_loopback(peer) or _is_listed(peer, trusted)) else ""


def _is_listed(peer: str, trusted: Sequence[str]) -> bool:
    if "*" in trusted or peer in trusted:
        return True
    try:
        address = ipaddress.ip_address(peer)
        return any(address in network for network in map(_network, trusted) if network is not None)
    except ValueError:
        return False


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
