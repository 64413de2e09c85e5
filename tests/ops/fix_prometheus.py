"""A real Prometheus that scrapes a real sentstream, by our own rules with their waits made short."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from stream.demo.child_process import free_port
from tests.ops.prometheus import ROOT, program
from tests.waiting import eventually

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"


class Prometheus:
    """``url``: its API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(timeout=10)

    def query(self, text: str) -> list[dict[str, Any]]:
        """The result of an instant query; an AssertionError where Prometheus refuses it."""
        answer = self._client.get(f"{self.url}/api/v1/query", params={"query": text}).json()
        assert answer["status"] == "success", (text, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        return {it["metric"]["alertname"] for it in self.query('ALERTS{alertstate="firing"}')}

    def fires(self, name: str, timeout: float = 60) -> None:
        eventually(lambda: name in self.firing(), timeout, every=0.3)

    def is_silent(self, *names: str, timeout: float = 60) -> None:
        """Until none of them (nothing at all, where none is named) fires."""
        eventually(lambda: not (self.firing() & set(names) if names else self.firing()), timeout, every=0.3)


def quick_rules(**thresholds: str) -> str:
    """The rules as they are, but for how long a fault must last. ``thresholds``: numbers to replace, by alert."""
    found = yaml.safe_load(RULES.read_text())
    for rule in found["groups"][0]["rules"]:
        rule["for"] = "1s"
        number = thresholds.get(rule["alert"])
        if number is not None:
            rule["expr"], n = re.subn(r"(> )[\d.e]+$", rf"\g<1>{number}", rule["expr"])
            assert n == 1, rule["expr"]
    text: str = yaml.safe_dump(found)
    return text


@contextmanager
def prometheus(folder: Path, jobs: dict[str, str], *, rules: str, token: str = "") -> Iterator[Prometheus]:
    """Started, and ready to answer. ``jobs``: name -> ``host:port`` to scrape."""
    (folder / "rules.yml").write_text(rules)
    (folder / "token").write_text(token)
    scrape = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": name,
                "static_configs": [{"targets": [target]}],
                **({"authorization": {"credentials_file": str(folder / "token")}} if token else {}),
            }
            for name, target in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(scrape))
    port = free_port()
    with (folder / "prometheus.log").open("w") as log:
        child = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--web.enable-lifecycle",
                "--log.level=warn",
                "--query.lookback-delta=5s",  # what is not scraped any more is soon forgotten
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")

        def ready() -> bool:
            assert child.poll() is None, (folder / "prometheus.log").read_text()
            try:
                return httpx.get(f"{found.url}/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        eventually(ready, 60)
        yield found
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
