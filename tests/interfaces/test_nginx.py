"""The proxy rules of docs/embedding.md in a real nginx: fall-back to the mailer, login, the dashboard under a path."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from stream.demo.child_process import free_port
from tests.fix_postgres import Database
from tests.interfaces.fix_web import Site, counted_db, prepared_db, serve
from tests.waiting import eventually

__all__ = ["counted_db", "prepared_db"]

pytestmark = [pytest.mark.system, pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")]

TOKEN = "correct-horse-battery-staple"
STATS = "/api/campaigns/running/stats"
RULES = "\n".join(
    re.findall(
        r"```nginx\n(.*?)```", (Path(__file__).parents[2] / "docs/embedding.md").read_text(encoding="utf-8"), re.DOTALL
    )
)


class Mailer(BaseHTTPRequestHandler):
    """Answers with its own name, where a login is needed only to those who have the cookie."""

    def do_GET(self) -> None:
        allowed = self.path != "/api/config" or "session=known" in self.headers.get("Cookie", "")
        self.send_response(200 if allowed else 403)
        self.end_headers()
        self.wfile.write(b"mailer")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mailer() -> Iterator[int]:
    """The port of a mailer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mailer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def site(counted_db: Database) -> Iterator[Site]:
    with serve(counted_db, HTTP_TOKEN=TOKEN, HTTP_ALLOWED_HOSTS="mail.example.org") as found:
        yield found


@pytest.fixture
def proxy(tmp_path: Path, mailer: int, site: Site) -> Iterator[str]:
    """nginx with the rules of the page; its URL."""
    port = free_port()
    rules = RULES.replace("127.0.0.1:8087", f"127.0.0.1:{site.port}").replace("127.0.0.1:9000", f"127.0.0.1:{mailer}")
    paths = " ".join(f"{name}_temp_path {tmp_path};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {paths}"
        f'map $host $sentstream_token {{ default "{TOKEN}"; }} server {{ listen 127.0.0.1:{port}; {rules} }} }}'
    )
    with subprocess.Popen(["nginx", "-c", str(config), "-p", str(tmp_path)], stderr=subprocess.PIPE) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: _answers(url) or process.poll() is not None)
            assert process.poll() is None, process.communicate()[1]
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url + "/admin/sentstream/livez").status_code == 200
    except httpx.HTTPError:
        return False


def test_stats_come_from_sentstream_and_while_it_is_stale_or_away_from_the_mailer(
    proxy: str, site: Site, counted_db: Database
) -> None:
    known = {"Cookie": "session=known", "Host": "mail.example.org:8443"}

    def answer() -> str:
        response = httpx.get(proxy + STATS, headers=known)
        assert response.status_code == 200, response.text
        return "mailer" if response.text == "mailer" else "sentstream"

    def fresh() -> str:
        counted_db.execute("UPDATE sentstream.watermarks SET as_of = clock_timestamp()")
        return answer()

    eventually(lambda: fresh() == "sentstream")
    eventually(lambda: answer() == "mailer", 15)
    eventually(lambda: fresh() == "sentstream")
    site.stop()
    assert answer() == "mailer"


def test_strangers_are_kept_out(proxy: str) -> None:
    assert httpx.get(proxy + STATS).status_code == 403


def test_the_dashboard_under_a_path_takes_a_login_from_a_page_on_another_port(proxy: str) -> None:
    host = "mail.example.org:8443"
    headers = {"Host": host, "Origin": f"https://{host}"}
    response = httpx.post(proxy + "/admin/sentstream/api/login", json={"token": TOKEN}, headers=headers)
    assert response.status_code == 204, response.text
