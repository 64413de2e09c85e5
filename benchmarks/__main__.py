"""All benchmarks, one after the other; exit status 0 only if all bounds held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_NOT = {"__init__", "__main__", "capture", "rivals_table", "scene", "soak"}


def main() -> int:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT)
    results = {name: subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]) for name in names}
    failed = [name for name, status in results.items() if status]
    print(f"{len(names)} benchmarks: {'all bounds held' if not failed else 'not held by ' + ', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
