"""Every precondition in PostgreSQL, one small check each; see `examine`."""

from __future__ import annotations

from connectors.postgres.doctor.examine import CHECKS, examine
from connectors.postgres.doctor.target import Check, Target, Thresholds

__all__ = ["CHECKS", "Check", "Target", "Thresholds", "examine"]
