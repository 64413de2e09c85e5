"""Fixtures for all tests. The parts: `fix_postgres`, `fix_kafka`, `fix_proxy`; `waiting.eventually` beside them."""

from __future__ import annotations

pytest_plugins = ("tests.fix_postgres", "tests.fix_kafka", "tests.fix_proxy")
