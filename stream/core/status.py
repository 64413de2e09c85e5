"""The five statuses of an ``email_queue`` row, and the three places beside them where a row comes from or goes to.

A move takes ``n`` rows from one of these to another. The order of the five is the order of the columns everywhere:
in ``progress``, in the counts of a recount, in JSON.
"""

from __future__ import annotations

from typing import Final

QUEUED: Final = 0
SENDING: Final = 1
SENT: Final = 2
FAILED: Final = 3
CANCELLED: Final = 4
#: no old side: the row was inserted
NEW: Final = 5
#: no new side: the row was deleted
REMOVED: Final = 6
#: the row went to another campaign, which is not a removal
MOVED: Final = 7

STATUSES: Final = ("queued", "sending", "sent", "failed", "cancelled")
PLACES: Final = (*STATUSES, "new", "removed", "moved")
PLACE_BY_NAME: Final = {name: number for number, name in enumerate(PLACES)}
STATUS_BY_NAME: Final = {name: number for number, name in enumerate(STATUSES)}
