"""What a client without the token can cost: wrong tokens, idle connections, clients that leave, malformed requests."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.fix_postgres import Database
from tests.interfaces.fix_web import Site, prepared_db, serve, shared_db
from tests.waiting import eventually

__all__ = ["prepared_db", "shared_db"]

TOKEN = "correct-horse-battery-staple"
#: with one event stream: connections beyond these are over the limit
CONNECTIONS = 501


@pytest.fixture(scope="module")
def small(shared_db: Database) -> Iterator[Site]:
    """A server with a token and few connections."""
    with serve(shared_db, HTTP_TOKEN=TOKEN, HTTP_MAX_STREAMS="1") as found:
        yield found


def login(token: str) -> bytes:
    body = f'{{"token": "{token}"}}'
    return (
        f"POST /api/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


def bearer(token: str) -> bytes:
    return (
        f"GET /api/campaigns HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    ).encode()


async def statuses(port: int, request: bytes, number: int) -> Counter[int]:
    """The status codes of ``number`` simultaneous requests."""

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ")[1])

    return Counter(await asyncio.gather(*(one() for _ in range(number))))


@pytest.mark.parametrize("request_of", [login, bearer])
def test_of_many_wrong_tokens_few_wait_and_the_others_get_429(small: Site, request_of: Callable[[str], bytes]) -> None:
    found = asyncio.run(statuses(small.port, request_of("wrong"), 200))
    assert set(found) == {401, 429}
    assert found[429] > 150


def test_the_token_is_accepted_while_wrong_tokens_arrive(small: Site) -> None:
    async def flood() -> tuple[int, int, int]:
        wrong = asyncio.create_task(statuses(small.port, login("wrong"), 300))
        async with httpx.AsyncClient(base_url=small.url, timeout=20) as client:
            read = await client.get("/api/campaigns", headers={"Authorization": f"Bearer {TOKEN}"})
            entered = await client.post("/api/login", json={"token": TOKEN})
            alive = await client.get("/livez")
        await wrong
        return read.status_code, entered.status_code, alive.status_code

    assert asyncio.run(flood()) == (200, 204, 200)


def test_health_answers_beyond_the_limit_of_connections(small: Site) -> None:
    with ExitStack() as held:
        for _ in range(CONNECTIONS):
            held.enter_context(socket.create_connection(("127.0.0.1", small.port), timeout=10))
        eventually(lambda: httpx.get(small.url + "/livez").status_code == 200)
        assert httpx.get(small.url + "/readyz").status_code in (200, 503)
        refused = httpx.get(small.url + "/api/campaigns", headers={"Authorization": f"Bearer {TOKEN}"})
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert "Retry-After" in refused.headers


def test_a_client_that_leaves_is_no_failure_inside(shared_db: Database) -> None:
    with serve(shared_db) as found:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", found.port), timeout=10) as raw:
                raw.sendall(b"POST /api/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        eventually(lambda: 'route="/api/login",status="499"' in found.get("/metrics").text)
        assert 'route="/api/login",status="500"' not in found.get("/metrics").text
        assert not any("ERROR" in line or "Traceback" in line for line in found.lines)


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "http://[x]", "http://a:b"])
def test_an_origin_that_is_no_address_is_refused(small: Site, origin: str) -> None:
    for path in ("/api/login", "/api/recounts"):
        response = small.post(path, headers={"Origin": origin}, json={"token": TOKEN})
        assert (response.status_code, response.headers["content-type"]) == (403, "application/problem+json")


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 19, str(2**63), "-1", "0", "١"])
def test_a_number_out_of_range_is_not_valid(small: Site, number: str) -> None:
    known = {"Authorization": f"Bearer {TOKEN}"}
    for path in (f"/api/campaigns/{number}", f"/api/recounts/{number}", f"/api/recounts?campaign_id={number}"):
        assert small.get(path, headers=known).status_code == 422, path
    for method in ("GET", "HEAD"):
        path = f"{small.url}/api/campaigns/{number}/events"
        assert httpx.request(method, path, headers=known).status_code in (404, 422), method


def test_a_cursor_beyond_bigint_is_not_valid(small: Site) -> None:
    from stream.web.responses import cursor_of

    known = {"Authorization": f"Bearer {TOKEN}"}
    for number in (2**63, 10**19 - 1):
        for path in ("/api/campaigns", "/api/recounts"):
            assert small.get(path, headers=known, params={"cursor": cursor_of(number)}).status_code == 422


def test_an_id_of_a_bigint_is_an_id(small: Site) -> None:
    known = {"Authorization": f"Bearer {TOKEN}"}
    assert small.get(f"/api/campaigns/{2**63 - 1}", headers=known).status_code == 404
    assert small.get(f"/api/recounts?campaign_id={3_000_000_000}", headers=known).json()["recounts"] == []


def test_a_forwarded_prefix_is_a_plain_path_from_a_proxy_that_is_trusted() -> None:
    from stream.web.proxies import forwarded_prefix

    assert forwarded_prefix("/admin/sentstream/", "127.0.0.1", ()) == "/admin/sentstream"
    assert forwarded_prefix("/a", "10.1.2.3", ("10.0.0.0/8",)) == "/a"
    assert forwarded_prefix("/a", "10.1.2.3", ("10.1.2.3",)) == "/a"
    assert forwarded_prefix("/a", "10.1.2.3", ("*",)) == "/a"
    assert forwarded_prefix("/a", "10.1.2.3", ("192.0.2.1", "proxy")) == ""
    assert forwarded_prefix("/a", None, ()) == ""
    for odd in ("//evil.example", "/a/../b", "/.", "a", "/a b", "/" + "a" * 200):
        assert forwarded_prefix(odd, "127.0.0.1", ()) == "", odd


def test_an_address_that_guesses_is_no_longer_compared() -> None:
    from stream.web.wrong_tokens import GUESSES, WrongTokens

    limit, now = WrongTokens(), 1000.0
    for _ in range(GUESSES):
        assert not limit.is_blocked("192.0.2.1", now)
        limit.note("192.0.2.1", now)
    assert limit.is_blocked("192.0.2.1", now)
    assert not limit.is_blocked("192.0.2.2", now)
    assert not limit.is_blocked("192.0.2.1", now + 61)
    for _ in range(2 * GUESSES):
        limit.note("127.0.0.1", now)
        limit.note("2001:db8::1", now)
    assert not limit.is_blocked("127.0.0.1", now), "every client behind a proxy of this machine"
    assert limit.is_blocked("2001:db8::2", now), "a host has a whole network of IPv6 addresses"
