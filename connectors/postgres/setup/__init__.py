"""Preparing the mailer's database, checking it, and taking it all off again.

`look` at what is there, `plan` the steps (pure), `apply` them or print them as a `script`. `conformance.check` says
afterwards whether it is still so.
"""

from __future__ import annotations

from connectors.postgres.catalog.conformance import check
from connectors.postgres.catalog.countable import countable_from
from connectors.postgres.catalog.facts import Found, Wanted
from connectors.postgres.catalog.look import look
from connectors.postgres.catalog.rights import Right, missing_rights
from connectors.postgres.setup.apply import BlockedError, Blocker, Patience, Progress, Reports, apply
from connectors.postgres.setup.plan import Plan, Step, plan
from connectors.postgres.setup.run import plan_of, set_up, tear_down, teardown_plan_of
from connectors.postgres.setup.script import script

__all__ = [
    "BlockedError",
    "Blocker",
    "Found",
    "Patience",
    "Plan",
    "Progress",
    "Reports",
    "Right",
    "Step",
    "Wanted",
    "apply",
    "check",
    "countable_from",
    "look",
    "missing_rights",
    "plan",
    "plan_of",
    "script",
    "set_up",
    "tear_down",
    "teardown_plan_of",
]
