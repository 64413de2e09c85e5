"""``python -m stream.cli``: the same as ``sentstream``, for child processes that must use this very Python."""

from __future__ import annotations

import sys

from stream.cli import main

sys.exit(main())
