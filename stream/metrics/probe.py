"""``python -m stream.metrics.probe [livez|readyz]``: asks this container's own health; exit code 0 or 1.

For health checks of containers, which have no curl. It asks where METRICS_LISTEN says, or, where that is off,
HTTP_LISTEN, by the same settings as the role.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

from stream.config.sources import load
from stream.core.errors import SentstreamError

#: addresses that mean "any", and where to ask then
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
TIMEOUT = 8.0


def main(words: Sequence[str]) -> int:
    """The exit code; one line on standard output."""
    which = words[0] if words else "livez"
    try:
        settings = load({})
    except SentstreamError as error:
        print(error)
        return 1
    where = settings.metrics_address or settings.http_address
    if where is None:
        print("METRICS_LISTEN and HTTP_LISTEN are off: there is no address to ask")
        return 1
    host = _ANY.get(where[0], where[0])
    url = f"http://{f'[{host}]' if ':' in host else host}:{where[1]}/{which}?verbose"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            print(answer.read().decode())
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode())
    except OSError as error:
        print(f"{url}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
