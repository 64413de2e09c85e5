"""Logs: one record a line, to standard error, no secret in it, JSON where asked."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from stream.service import logs

SECRET = "correct-horse"


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logging.captureWarnings(capture=False)
    for name in (*logs.OURS, *logs.CLIENTS):
        logging.getLogger(name).setLevel(logging.NOTSET)


def written(form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level, form, [SECRET, ""], stream)
    return stream


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_masked_wherever_they_stand(form: str) -> None:
    stream = written(form)
    log = logging.getLogger("stream.embedded.run")
    log.info("token %s", SECRET)
    log.info("url", extra={"url": f"postgresql://u:{SECRET}@h/d", "nested": {"password": SECRET}})
    log.warning("could not connect to postgresql://u:other-secret@h/d password=other-secret")
    try:
        raise ValueError(SECRET)
    except ValueError:
        log.exception("failed")
    assert SECRET not in stream.getvalue()
    assert "other-secret" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 4


def test_a_mask_does_not_break_json() -> None:
    stream = written("json")
    logging.getLogger("stream.web").info("password='open", extra={"url": ["password='a", 1, None], "next": "b"})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["url"], line["next"]) == ("password=***", ["password=***", 1, None], "b")


def test_json_lines_carry_the_extra_fields() -> None:
    stream = written("json")
    logging.getLogger("stream.reconcile.reconciler").info("recount trigger=%s", "start", extra={"run_id": 7})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "logger": "stream.reconcile.reconciler", "message": "recount trigger=start", "run_id": 7,
    }  # fmt: skip


def test_a_name_with_line_breaks_or_escapes_makes_no_record_of_its_own() -> None:
    stream = written("text")
    logging.getLogger("stream.cli").info("campaign %s", "Spring\n2026-01-01 ERROR forged\x1b[2J\x9b")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()
    assert "\x9b" not in stream.getvalue()


def test_tracebacks_only_at_debug() -> None:
    for level, expected in (("info", False), ("debug", True)):
        stream = written("text", level)
        try:
            raise RuntimeError("what happened")
        except RuntimeError:
            logging.getLogger("stream.x").exception("flush failed")
        assert ("Traceback" in stream.getvalue()) is expected
        assert "flush failed: RuntimeError: what happened" in stream.getvalue()


def test_levels_are_ours_others_speak_from_warning_on() -> None:
    stream = written("text", "debug")
    logging.getLogger("stream.a").debug("ours")
    logging.getLogger("aiokafka").info("theirs")
    logging.getLogger("aiokafka").warning("their warning")
    logs.set_level("error")
    logging.getLogger("connectors.b").warning("too low")
    assert [line.split(": ", 1)[1] for line in stream.getvalue().splitlines()] == ["ours", "their warning"]


@pytest.mark.parametrize("client", ["kafka.net.manager", "aiokafka.conn", "faust", "mode"])
def test_kafkas_clients_are_heard_only_at_debug(client: str) -> None:
    stream = written("text", "info")
    logging.getLogger(client).error("Connection failed")
    assert stream.getvalue() == ""
    logs.set_level("debug")
    logging.getLogger(client).error("Connection failed")
    logs.set_level("warning")
    logging.getLogger(client).error("Connection failed")
    assert stream.getvalue().count("Connection failed") == 1


def test_configuring_again_leaves_one_handler() -> None:
    first, second = written("text"), written("text")
    logging.getLogger("stream.a").error("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)
