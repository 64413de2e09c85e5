"""The demo's mailer: it queues and sends mail as the real one does, and knows what is true of each row.

demo.py        newsletters that come and go, by the clock;  newsletters.py: which;  history.py: what was there before
act.py         an act and what it is done to;  sender.py performs acts;  rows.py, campaigns.py: how
ledger.py      pure: what the mailer knows of its rows, and so the truth
workspace.py   what one sender works on: its session, campaigns and readers
session.py     one connection: transactions that enter the ledger once committed, and what to do when it is lost
ticker.py      pure: what it does when its send window closes and opens
statements.py  the SQL
__main__.py    the process: python -m stream.demo.mailer --database-url ...
"""
