"""Who is let in, from where, and what an answer never says."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from stream.config.settings import Settings
from stream.core.errors import ConfigurationError
from stream.service.auth import is_loopback
from stream.web.access import AccessRules, host_name
from stream.web.server import listen
from tests.fix_postgres import Database
from tests.interfaces.fix_web import (
    Run,
    Site,
    counted_db,
    counting_website,
    prepared_db,
    run,
    serve,
    shared_db,
    site,
    website,
)
from tests.waiting import eventually

__all__ = ["counted_db", "counting_website", "prepared_db", "run", "shared_db", "website"]

TOKEN = "correct-horse-battery-staple"
HOST = "sentstream.example.org"
ORIGIN = "https://mail.example.org"


@pytest.fixture(scope="module")
def locked(shared_db: Database) -> Iterator[Site]:
    """A server with a token, a host name and an origin of others that is allowed."""
    with serve(shared_db, HTTP_TOKEN=TOKEN, HTTP_ALLOWED_HOSTS=HOST, HTTP_ALLOWED_ORIGINS=ORIGIN) as found:
        yield found


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


NOBODY: tuple[dict[str, str], ...] = (
    {},
    bearer("wrong"),
    bearer(TOKEN[:-1]),
    bearer(TOKEN + "x"),
    {"Authorization": "Bearer"},
    {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": TOKEN},
    {"Cookie": "sentstream=1.x"},
)


def calls(site: Site) -> list[tuple[str, str]]:
    """Every call that the server itself says it has, with ids filled in."""
    schema = site.get("/openapi.json", headers=bearer()).json()
    found = [("GET", "/"), ("GET", "/openapi.json"), ("GET", "/static/app.css"), ("GET", "/favicon.ico")]
    for path, methods in schema["paths"].items():
        filled = path.replace("{campaign_id}", "7").replace("{run_id}", "17")
        found.extend((method.upper(), filled) for method in methods)
    return found


def test_no_call_works_without_the_token(locked: Site) -> None:
    for method, path in calls(locked):
        for headers in NOBODY:
            with locked.client.stream(method, locked.url + path, headers=headers) as response:
                expected = {"/livez": {200}, "/readyz": {200, 503}, "/api/login": {401, 422}}.get(path, {401})
                assert response.status_code in expected, (method, path, headers)
                if response.status_code == 401:
                    assert "Bearer" in response.headers["www-authenticate"]


def test_with_the_token_calls_work(locked: Site) -> None:
    assert locked.get("/api/campaigns/7", headers=bearer()).json()["sent"] == 40
    assert locked.get("/api/campaigns/7", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    with locked.events(headers=bearer()) as events:
        assert events.next()[0] == "snapshot"


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def noting(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr("stream.web.access.hmac.compare_digest", noting)
    rules = AccessRules(TOKEN)
    assert rules.fits(TOKEN)
    assert not rules.fits("x")
    assert not rules.fits(TOKEN + "x")
    assert not rules.fits(TOKEN[:-1])
    assert not rules.fits("")
    assert len(compared) == 5
    assert {len(word) for pair in compared for word in pair} == {32}, "digests: even the length tells nothing"


def test_logging_in_gives_a_cookie_that_scripts_and_other_sites_can_not_use(locked: Site) -> None:
    with httpx.Client(base_url=locked.url, timeout=10) as browser:
        assert browser.post("/api/login", json={"token": "wrong"}).status_code == 401
        assert browser.get("/api/campaigns").status_code == 401
        response = browser.post("/api/login", json={"token": TOKEN})
        assert response.status_code == 204
        cookie = response.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert browser.get("/api/campaigns/7").json()["sent"] == 40
        assert "data-token" in browser.get("/").text
        assert browser.post("/api/logout").status_code == 204
        assert browser.get("/api/campaigns").status_code == 401


def test_the_login_page_needs_nothing_else(locked: Site) -> None:
    html = {"Accept": "text/html"}
    page = locked.get("/", headers=html)
    assert page.status_code == 401
    assert "password" in page.text
    assert "<script" not in page.text
    assert not re.search(r'(src|href)="', page.text)
    form = {"token": TOKEN}
    entered = httpx.post(locked.url + "/api/login", data=form, headers={**html, "Origin": locked.url})
    assert (entered.status_code, entered.headers["location"]) == (303, "../")
    wrong = httpx.post(locked.url + "/api/login", data={"token": "nope"}, headers=html)
    assert wrong.status_code == 401
    assert "not the token" in wrong.text


def test_a_cookie_can_not_be_made_or_kept_beyond_its_time() -> None:
    rules, now = AccessRules(TOKEN), time.time()
    cookie = rules.cookie(now)
    assert rules.accepts_cookie(cookie, now + 60)
    assert not rules.accepts_cookie(cookie, now + 40 * 24 * 3600)
    assert not AccessRules("another").accepts_cookie(cookie, now)
    expiry, _, seal = cookie.partition(".")
    for forged in (f"{int(expiry) + 9}.{seal}", f"{expiry}.{seal[:-1]}0", expiry, "", ".", f"x.{seal}", f"{expiry}.é"):
        assert not rules.accepts_cookie(forged, now) or forged == cookie


def test_guessing_is_slow(locked: Site) -> None:
    began = time.monotonic()
    for _ in range(3):
        assert locked.post("/api/login", json={"token": "guess"}).status_code == 401
    assert time.monotonic() - began > 1


ODD_HOSTS = "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a@localhost", "local host"
OUR_HOSTS = "localhost", "LOCALHOST:9", "127.9.9.9", "[::1]:80", "dev.localhost", HOST, f"{HOST}:443"


@pytest.mark.parametrize("host", ODD_HOSTS)
def test_a_host_that_is_not_ours_is_refused(website: Site, host: str) -> None:
    with socket.create_connection(("127.0.0.1", website.port), timeout=10) as raw:
        raw.sendall(f"GET /api/campaigns HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert int(answer.split(b" ")[1]) in (400, 421)
    assert b"Spring" not in answer


def test_health_answers_to_any_host(website: Site) -> None:
    assert website.get("/livez", headers={"Host": "10.1.2.3:8087"}).status_code == 200


@pytest.mark.parametrize("host", OUR_HOSTS)
def test_loopback_and_allowed_hosts_are_ours(locked: Site, host: str) -> None:
    assert locked.get("/api/campaigns", headers={**bearer(), "Host": host}).status_code == 200


def test_what_a_host_header_means() -> None:
    assert host_name("a.example:80") == "a.example"
    assert host_name("[::1]") == "::1"
    for odd in ("a b", "a/b", "u@a", "a:x", "[::1", ""):
        assert host_name(odd) is None
    assert not is_loopback("128.0.0.1")
    assert not is_loopback("localhost.example")


def test_changing_requests_from_elsewhere_are_refused(website: Site) -> None:
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{website.port + 1}"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        for path in ("/api/recounts", "/api/campaigns/7/sync-counts", "/api/login", "/api/logout"):
            response = website.post(path, headers=headers, json={"token": ""})
            assert (response.status_code, response.headers["content-type"]) == (403, "application/problem+json")


def test_requests_from_our_own_page_are_not(locked: Site) -> None:
    own = {"Origin": locked.url, "Sec-Fetch-Site": "same-origin"}
    assert locked.post("/api/login", headers=own, json={"token": TOKEN}).status_code == 204


def test_an_allowed_origin_gets_cors_and_no_other(locked: Site) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = httpx.options(locked.url + "/api/recounts", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    answer = locked.get("/api/campaigns", headers={**bearer(), "Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in answer.headers["vary"]
    other = httpx.options(locked.url + "/api/recounts", headers={**asked, "Origin": "https://evil.example"})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


def test_the_headers_of_the_page(website: Site) -> None:
    page = website.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", page.text), "nothing inline"
    assert "server" not in page.headers


def test_no_page_file_or_answer_names_an_address_outside(website: Site) -> None:
    scripts = [f"/static/js/{name}.js" for name in ["main", "stream", "list", "detail", "panels", "api"]]
    for path in ("/", "/static/app.css", *scripts):
        outside = set(re.findall(r"https?://[^\s\"')]+", website.get(path).text))
        assert outside <= {"http://www.w3.org/2000/svg"}, path


def test_no_secret_is_in_any_answer_or_log(counted_db: Database) -> None:
    role = counted_db.role("LOGIN SUPERUSER")
    password = re.search(r"password=(\w+)|:(\w+)@", counted_db.url_of(role))
    assert password is not None
    secret = password[1] or password[2]
    with serve(counted_db, DATABASE_URL=counted_db.url_of(role), HTTP_TOKEN=TOKEN) as found:
        bodies = []
        for method, path in [*calls(found), ("GET", "/api/nothing"), ("POST", "/api/login")]:
            if not path.endswith("/events"):
                response = httpx.request(method, found.url + path, headers=bearer(), timeout=20)
                bodies.append(response.text + str(response.headers))
        counted_db.execute("ALTER SCHEMA sentstream RENAME TO elsewhere")  # now everything fails
        eventually(lambda: found.get("/readyz").status_code == 503)
        later = ("/api/recounts", "/api/status", "/readyz?verbose", "/api/lag", "/metrics")
        bodies.extend(found.get(path, headers=bearer()).text for path in later)
        found.stop()
        said = "".join([*bodies, *found.lines])
    assert secret not in said
    assert TOKEN not in said
    assert "Traceback" not in said


def test_a_failure_inside_tells_its_request_id_alone(counted_db: Database) -> None:
    with serve(counted_db) as found:
        counted_db.execute("ALTER TABLE sentstream.recounts RENAME COLUMN snapshot TO gone")
        response = found.get("/api/recounts")
        assert response.status_code in (500, 503)
        assert response.json()["request_id"] == response.headers["x-request-id"]
        assert "gone" not in response.text
        assert "sentstream.recounts" not in response.text
        found.get("/api/lag")
        assert not any("Exception in ASGI" in line for line in found.lines), "the server would cut the connection"
        counted_db.execute("ALTER TABLE sentstream.recounts RENAME COLUMN gone TO snapshot")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_it_does_not_listen_to_others_without_a_token(address: str) -> None:
    with pytest.raises(ConfigurationError, match="HTTP_TOKEN"):
        listen(Settings(database_url="postgresql://x/y", http_listen=address))


def test_the_command_says_so_and_ends(run: Run) -> None:
    outcome = run("serve", "--database-url", "postgresql://localhost/none", "--http-listen", "0.0.0.0:0")
    assert outcome.code == 2
    assert "HTTP_TOKEN" in outcome.err


def test_with_a_token_it_listens_anywhere() -> None:
    listen(Settings(database_url="postgresql://x/y", http_listen="0.0.0.0:0", http_token=TOKEN)).close()


def test_an_address_in_use_is_named(website: Site) -> None:
    with pytest.raises(ConfigurationError, match=str(website.port)):
        listen(Settings(database_url="postgresql://x/y", http_listen=f"127.0.0.1:{website.port}"))


def test_markup_in_a_campaigns_name_is_text_in_every_answer(counted_db: Database) -> None:
    counted_db.execute("UPDATE campaigns SET name = '<script>alert(1)</script>' WHERE id = 7")
    with site("serve", database=counted_db) as found:
        from tests.waiting import eventually

        eventually(lambda: found.get("/api/campaigns/7").status_code == 200)
        response = found.get("/api/campaigns/7")
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "<script>alert" not in found.get("/").text


def test_the_http_process_inherits_no_secret(counting_website: Site) -> None:
    """It gets its settings through a pipe."""
    (child,) = [
        it for it in psutil.Process(counting_website.child.pid).children() if "stream.web.child_main" in it.cmdline()
    ]
    assert not [name for name in child.environ() if name.startswith("SENTSTREAM_")]
