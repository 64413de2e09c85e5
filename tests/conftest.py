"""Fixtures for all tests. The parts: `fix_postgres`, `fix_kafka`, `fix_proxy`; `waiting.eventually` beside them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = ("tests.fix_postgres", "tests.fix_kafka", "tests.fix_proxy")

# a machine that is busy with other things makes no test fail: pytest's time limit is the only one
settings.register_profile("sentstream", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sentstream")
