"""Random load for tests and proofs: the demo's mailer does everything a mailer may do, and knows the truth.

    action_mix.py  pure: which act comes next, and on what
    rows.py, campaigns.py  acts that the demo doesn't have;  sender.py  chooses and performs
    simulator.py   one sender, step by step:  Simulator(url, seed).step()
    load.py        several senders at a rate

The truth is kept in the process and never read from the database, so it can prove what counts the database.
"""

from __future__ import annotations

from tests.mailer_load.action_mix import ACTS, MIXES, parse_mix
from tests.mailer_load.load import Load
from tests.mailer_load.simulator import Simulator

__all__ = ["ACTS", "MIXES", "Load", "Simulator", "parse_mix"]
