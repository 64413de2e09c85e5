"""The pictures of the docs, made by a command: ``python -m tests.interfaces.pictures [FOLDER]``.

Starts a private PostgreSQL, a mailer's day (`scene`) and `sentstream run`, and takes pictures of the real page with
Debian's Chromium. Only the past of the curves is made up: no picture can wait three hours for it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import Browser, sync_playwright

from stream.demo.private_postgres import PrivateServer
from tests.fix_postgres import create_database
from tests.interfaces.fix_counted import prepared
from tests.interfaces.fix_web import Site, site
from tests.interfaces.scene import Scene, backdate_history
from tests.interfaces.test_dashboard import ARGUMENTS, CHROMIUM
from tests.waiting import eventually

PICTURES = (
    ("dashboard-light", 1280, 1000, "light", ""),
    ("dashboard-dark", 1280, 1000, "dark", "document.querySelector('.open').click()"),
    ("dashboard-phone", 390, 844, "light", ""),
    ("dashboard-stale", 1280, 620, "light", ""),
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with PrivateServer() as server:
        database = prepared(create_database(server, mailer=True))
        scene = Scene(database.url).prepare()
        with site("run", database=database, RECOUNT_INTERVAL="60s") as found:
            eventually(lambda: found.get("/readyz").status_code == 200, 60)
            backdate_history(database.url)
            scene.start()
            time.sleep(45)  # for a curve and a rate that are real
            _recount(found)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
                for name, width, height, scheme, act in PICTURES:
                    if name.endswith("stale"):
                        scene.stop()
                        found.child.send_signal(19)  # SIGSTOP: the counting process
                        time.sleep(9)
                    _take(browser, found.url, folder / f"{name}.png", width, height, scheme, act)
                    print(folder / f"{name}.png")
                found.child.send_signal(18)
                browser.close()


def _recount(found: Site) -> None:
    location = found.post("/api/recounts").headers["location"]
    eventually(lambda: _is_sealed(found, location), 60)


def _is_sealed(found: Site, location: str) -> bool:
    try:
        return bool(found.get(location).json()["status"] == "sealed")
    except httpx.HTTPError:
        return False


def _take(browser: Browser, url: str, path: Path, width: int, height: int, scheme: str, act: str) -> None:
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=1.5,
        locale="en-GB",
    )
    page.goto(url + "/")
    page.wait_for_selector(".row")
    page.wait_for_timeout(4000)
    if act:
        page.evaluate(act)
        page.wait_for_timeout(3000)
    page.screenshot(path=path)
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs" / "pictures")
