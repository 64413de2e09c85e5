"""The page in a real browser (Debian's Chromium): live, honest about what is old, for keyboard and screen reader."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.fix_postgres import Database
from tests.interfaces.fix_web import Site, counted_db, counting_website, own_website, prepared_db, serve, site
from tests.interfaces.scene import MARKUP, Cast, Scene
from tests.waiting import eventually

__all__ = ["counted_db", "counting_website", "own_website", "prepared_db"]

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CAST = (
    Cast("Weekly digest", "finished", sent=30),
    Cast(MARKUP, "scheduled", queued=20),
    Cast("Launch", "paused", sent=5, cancelled=15),
    Cast("Spring", "running", queued=60, sent=40, failed=2),
)
SPRING = ".row:has-text('Spring')"


expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def scene(counting_website: Site, prepared_db: Database) -> Scene:
    """A few campaigns, counted and served."""
    made = Scene(prepared_db.url, CAST).prepare()
    eventually(lambda: counting_website.campaign(made.ids[-1])["queue_total"] == 102)
    return made


@contextmanager
def opened(browser: Browser, url: str, *, complaints: list[str] | None = None, **options: Any) -> Iterator[Page]:
    """The page in a context of its own. What the console says goes to ``complaints``, and fails the test by default."""
    heard: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: _note(heard, message))
    page.on("pageerror", lambda error: heard.append(f"page error: {error}"))
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    if complaints is None:
        assert heard == []
    else:
        complaints.extend(heard)


def _note(heard: list[str], message: ConsoleMessage) -> None:
    if message.type in ("error", "warning"):
        heard.append(message.text)


def state(page: Page) -> str:
    return str(page.evaluate("document.documentElement.dataset.state"))


def wait_for_state(page: Page, wanted: str, timeout: float = 30) -> None:
    is_so = "wanted => document.documentElement.dataset.state === wanted"
    page.wait_for_function(is_so, arg=wanted, timeout=timeout * 1000)


def test_live_numbers_change_without_a_reload(browser: Browser, counting_website: Site, scene: Scene) -> None:
    with opened(browser, counting_website.url + "/") as page:
        wait_for_state(page, "live")
        row = page.locator(SPRING)
        expect(row.locator(".of")).to_have_text("40 of 102 sent")
        page.evaluate("window.here = true")
        scene.send(scene.ids[-1], 10)
        expect(row.locator(".of")).to_have_text("50 of 102 sent")
        expect(row.locator(".percent")).to_have_text("49.0 %")
        expect(row.locator(".bar")).to_have_attribute("aria-label", "50 sent · 50 queued · 2 failed")
        expect(page.locator("#pulse-text")).to_contain_text("Live · as of")
        assert page.evaluate("window.here") is True


def test_names_with_markup_are_text(browser: Browser, counting_website: Site, scene: Scene) -> None:
    with opened(browser, counting_website.url + "/") as page:
        expect(page.locator(".name", has_text="Black Friday")).to_have_text(MARKUP)
        assert page.locator(".name b, .name img").count() == 0


def test_an_old_number_is_marked_within_five_seconds(browser: Browser, counting_website: Site, scene: Scene) -> None:
    with opened(browser, counting_website.url + "/") as page:
        wait_for_state(page, "live")
        counting_website.child.send_signal(signal.SIGSTOP)
        try:
            # by the page's own clock, so that a busy machine does not count against it
            took = page.evaluate(
                """async () => {
                    const began = performance.now(), root = document.documentElement;
                    while (root.dataset.state !== "stale") await new Promise((go) => setTimeout(go, 20));
                    return performance.now() - began;
                }"""
            )
            assert took < 5500
            expect(page.locator(SPRING)).to_have_class(re.compile("stale"))
            expect(page.locator(SPRING).locator(".eta")).to_contain_text("as of")
            expect(page.locator("#notice")).to_contain_text("These numbers are from")
        finally:
            counting_website.child.send_signal(signal.SIGCONT)
        wait_for_state(page, "live")
        expect(page.locator(SPRING)).not_to_have_class(re.compile("stale"))


def test_it_reconnects_after_the_server_restarts(browser: Browser, prepared_db: Database) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    complaints: list[str] = []
    with site("run", database=prepared_db, HTTP_LISTEN=address) as first:
        made = Scene(prepared_db.url, CAST).prepare()
        eventually(lambda: first.campaign(made.ids[-1])["queue_total"] == 102)
        with opened(browser, first.url + "/", complaints=complaints) as page:
            wait_for_state(page, "live")
            first.stop()
            wait_for_state(page, "disconnected")
            expect(page.locator("#notice")).to_contain_text("Disconnected")
            expect(page.locator(SPRING)).to_have_class(re.compile("stale"))
            with site("run", database=prepared_db, HTTP_LISTEN=address):
                wait_for_state(page, "live", 60)
                made.send(made.ids[-1], 5)
                expect(page.locator(SPRING).locator(".of")).to_have_text("45 of 102 sent")
                expect(page.locator("#notice")).to_be_hidden()
    assert all("ERR_" in it or "Failed to load" in it for it in complaints), complaints  # the browser's own, of the gap


def test_the_recount_button_works(browser: Browser, counting_website: Site, scene: Scene) -> None:
    with opened(browser, counting_website.url + "/") as page:
        wait_for_state(page, "live")
        page.get_by_role("button", name="Recount now").click()
        said = re.compile(r"Run \d+: .*(verified|first time)")
        expect(page.locator("#recount-said")).to_contain_text(said, timeout=60_000)
        expect(page.locator("#recounts-panel tbody tr").first).to_contain_text("asked for")
        expect(page.locator(SPRING).locator(".badge")).to_contain_text("verified")


def test_a_drift_is_shown_with_its_cause(browser: Browser, own_website: Site, counted_db: Database) -> None:
    with opened(browser, own_website.url + "/") as page:
        expect(page.locator("#proof")).to_have_text("1 drifted")
        page.get_by_role("button", name="Run 17, verdicts").click()
        inside = page.locator("tr.inside").first
        expect(inside).to_contain_text("drift")
        expect(inside).to_contain_text("A change did not reach the counts")
        expect(inside).to_contain_text("sent −1")


def test_a_campaign_opens_to_its_curve_and_numbers(browser: Browser, counting_website: Site, scene: Scene) -> None:
    with opened(browser, counting_website.url + "/") as page:
        scene.send(scene.ids[-1], 10)
        page.locator(SPRING).locator(".open").click()
        detail = page.locator(".detail:visible")
        expect(detail.locator("canvas")).to_be_visible()
        expect(detail.locator(".chart")).to_have_attribute("aria-label", re.compile(r"Sent per minute: \d+ mails"))
        expect(detail).to_contain_text("2 mails failed")
        detail.get_by_role("button", name="Recount this campaign").click()
        expect(detail.locator(".said")).to_contain_text("Counted as run")
        page.locator(SPRING).locator(".open").click()
        expect(detail).to_be_hidden()


def test_filters_and_search(browser: Browser, counting_website: Site, scene: Scene) -> None:
    with opened(browser, counting_website.url + "/") as page:
        rows = page.locator("#list > li")
        expect(page.locator(SPRING)).to_be_visible()
        page.get_by_role("radio", name="All").check()
        expect(rows).to_have_count(4)
        page.get_by_role("radio", name="Problems").check()
        expect(rows).to_have_count(1)
        page.get_by_role("searchbox").fill("digest")
        expect(page.locator("#empty")).to_contain_text("No campaign is called")
        page.get_by_role("radio", name="All").check()
        expect(rows).to_have_count(1)


def test_everything_can_be_reached_by_keyboard(browser: Browser, counting_website: Site, scene: Scene) -> None:
    with opened(browser, counting_website.url + "/") as page:
        wait_for_state(page, "live")
        expect(page.locator(SPRING)).to_be_visible()
        reached: list[str] = []
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("(({id, className}) => `${id} ${className}`)(document.activeElement)"))
        for wanted in ("skip", "theme", "recount", "search", "open", "only-drift"):
            assert any(wanted in it for it in reached), (wanted, reached)
        page.locator(SPRING).locator(".open").focus()
        page.keyboard.press("Enter")
        expect(page.locator(".detail:visible")).to_have_count(1)
        expect(page.locator(SPRING).locator(".open")).to_have_attribute("aria-expanded", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_fault(
    browser: Browser, counting_website: Site, scene: Scene, scheme: str, width: int
) -> None:
    options: dict[str, Any] = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}, "bypass_csp": True}
    with opened(browser, counting_website.url + "/", **options) as page:
        wait_for_state(page, "live")
        page.locator(SPRING).locator(".open").click()
        expect(page.locator(".detail:visible canvas")).to_be_visible()
        expect(page.locator("#recounts-panel table")).to_be_visible()
        found = Axe().run(page).response["violations"]
        grave = [it for it in found if it["impact"] in ("serious", "critical")]
        assert [f"{it['id']}: {it['nodes'][0]['html'][:200]}" for it in grave] == []


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, counting_website: Site, scene: Scene) -> None:
    with opened(browser, counting_website.url + "/", viewport={"width": 360, "height": 740}) as page:
        wait_for_state(page, "live")
        page.locator(SPRING).locator(".open").click()
        expect(page.locator(".detail:visible canvas")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_colours_can_be_chosen_and_are_kept(browser: Browser, own_website: Site) -> None:
    with opened(browser, own_website.url + "/", color_scheme="light") as page:
        light = background(page)
        page.locator("#theme").click()
        page.locator("#theme").click()
        assert background(page) != light
        page.reload()
        assert background(page) != light
        expect(page.locator("#theme")).to_have_attribute("aria-label", "Colours: dark")


def test_empty_and_unstarted_are_said(browser: Browser, prepared_db: Database, counted_db: Database) -> None:
    prepared_db.execute("DELETE FROM campaigns; DELETE FROM sentstream.progress; DELETE FROM sentstream.watermarks")
    with serve(prepared_db) as found, opened(browser, found.url + "/") as page:
        wait_for_state(page, "unstarted")
        expect(page.locator("#notice")).to_contain_text("sentstream run")
        expect(page.locator("#empty")).to_contain_text("no campaigns yet")


def test_with_a_token_the_page_asks_for_it_first(browser: Browser, counted_db: Database) -> None:
    complaints: list[str] = []
    with serve(counted_db, HTTP_TOKEN="open-sesame") as found:
        with opened(browser, found.url + "/", complaints=complaints) as page:
            page.get_by_label("Token").fill("wrong")
            page.get_by_role("button", name="Log in").click()
            expect(page.get_by_role("alert")).to_contain_text("not the token")
            page.get_by_label("Token").fill("open-sesame")
            page.get_by_role("button", name="Log in").click()
            expect(page.locator(".row").first).to_be_visible()
            page.get_by_role("button", name="Log out").click()
            expect(page.get_by_label("Token")).to_be_visible()
    assert all("401" in it for it in complaints), complaints


def test_three_hundred_campaigns_stay_smooth(browser: Browser, counted_db: Database) -> None:
    counted_db.execute(
        "INSERT INTO campaigns (id, name, status, to_send) SELECT 1000 + n, 'Campaign ' || n, 'running', 500"
        " FROM generate_series(1, 300) n;"
        "INSERT INTO sentstream.progress (campaign_id, partition, queue_queued, queue_sent, sent)"
        " SELECT 1000 + n, 0, 400, 100, 100 FROM generate_series(1, 300) n"
    )
    change = (
        "UPDATE sentstream.progress SET queue_queued = queue_queued - 1, queue_sent = queue_sent + 1, sent = sent + 1"
        " WHERE campaign_id > 1000; UPDATE sentstream.watermarks SET seq = seq + 1, as_of = clock_timestamp()"
    )
    with serve(counted_db) as found, opened(browser, found.url + "/") as page:
        expect(page.locator("#shown")).to_contain_text("30")
        page.locator("#more").click()
        assert page.locator("#list > li").count() > 290
        page.evaluate(
            """() => {
                window.frames_ = [];
                let before = performance.now();
                const look = (now) => { window.frames_.push(now - before); before = now; requestAnimationFrame(look); };
                requestAnimationFrame(look);
                window.long_ = [];
                new PerformanceObserver((list) => list.getEntries().forEach((it) => window.long_.push(it.duration)))
                    .observe({ type: "longtask" });
            }"""
        )
        for _ in range(12):
            counted_db.execute(change)
            page.wait_for_timeout(250)
        expect(page.locator(".row", has_text="Campaign 300").locator(".of")).to_have_text("112 of 500 sent")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        long_tasks = page.evaluate("window.long_")
        print(f"first paint {paint:.0f} ms; long tasks {[round(it) for it in long_tasks]} ms")
        assert not long_tasks or sorted(long_tasks)[len(long_tasks) // 2] < 400


def test_the_page_to_copy_works(browser: Browser, prepared_db: Database, scene: Scene, tmp_path: Path) -> None:
    """The twenty lines of docs/embedding.md, opened as the page of another origin."""
    import functools
    import http.server
    import threading

    text = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text(encoding="utf-8")
    found = re.search(r"```html\n(<!doctype html>.*?)```", text, re.DOTALL)
    assert found is not None
    assert found[1].count("\n") <= 24
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{pages.server_port}"
        with site("serve", database=prepared_db, HTTP_ALLOWED_ORIGINS=origin) as other:
            eventually(lambda: other.get("/api/campaigns").status_code == 200, 20)
            copied = found[1].replace("http://127.0.0.1:8087", other.url)
            copied = copied.replace("campaigns/1/", f"campaigns/{scene.ids[-1]}/")
            (tmp_path / "page.html").write_text(copied, encoding="utf-8")
            (tmp_path / "favicon.ico").write_bytes(b"")  # browsers ask for it
            with opened(browser, origin + "/page.html") as page:
                expect(page.locator("output")).to_contain_text("40 of 102")
                scene.send(scene.ids[-1], 3)
                expect(page.locator("output")).to_contain_text("43 of 102")
        pages.shutdown()
