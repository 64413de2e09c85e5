"""``python -m sentstream``: the same as the command ``sentstream``."""

from __future__ import annotations

import sys

from stream.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
