"""A mailer that behaves as the real one does, with a truth of its own: for the demo, tests and benchmarks.

    choose.py      pure: which act comes next, and on what
    book.py        pure: what the simulated mailer knows of its rows, and so the truth
    ticker.py      pure: what it does when its send window closes and opens
    statements.py  the statements of the mailer
    session.py     one connection: transactions that enter the book once committed, and what to do when it is lost
    desk.py        what one sender works on;  rows.py, campaigns.py: the acts;  sender.py: choose, perform, account
    simulator.py   one sender, step by step, for tests:  Simulator(url, seed).step()
    load.py        several senders at a rate, for benchmarks
    demo.py        newsletters that come and go, for people;  cast.py: which;  history.py: what was there before
    __main__.py    the process: python -m stream.demo.mailer --database-url ...

The truth is kept in the process and never read from the database, so it can prove what counts the database.
"""

from __future__ import annotations

from stream.demo.mailer.action_mix import ACTS, MIXES, Act, parse_mix
from stream.demo.mailer.ledger import CampaignTruth, Truth
from stream.demo.mailer.load import Load
from stream.demo.mailer.simulator import Simulator

__all__ = ["ACTS", "MIXES", "Act", "CampaignTruth", "Load", "Simulator", "Truth", "parse_mix"]
