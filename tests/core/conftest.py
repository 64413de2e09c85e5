"""Hypothesis on noisy machines: no deadlines; HYPOTHESIS_EXAMPLES asks for more examples than the short form."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "noisy",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "50")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("noisy")
