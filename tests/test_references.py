"""Every file that code, tests or pages name is in the repository."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
FOLDERS: Final = "stream|connectors|sentstream|tests|benchmarks|docs|deploy|scripts|locks"
PATH: Final = re.compile(rf"(?<![\w/.<>@-])((?:{FOLDERS})/[\w.@/-]*\w)(?![\w*{{<])")
#: a page in capitals, as in "see README.md"
PAGE: Final = re.compile(r"(?<![\w/.-])([A-Z][A-Z_]{3,}\.md)\b")
TEXT: Final = {".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".mk", ".sql", ".js", ".css", ".html", ""}
#: what stands in a text as an example, or is made when something runs
NOT_FILES: Final = re.compile(r"^(docs/pictures/\w+$|locks/\w+$|stream/s\b|stream/deep/)")


@cache
def tracked() -> tuple[str, ...]:
    """The files that git knows and that are there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(name for name in listed.splitlines() if (ROOT / name).is_file())


def _texts() -> dict[str, str]:
    names = [n for n in tracked() if Path(n).suffix in TEXT and "/uplot/" not in n and n != "tests/test_references.py"]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


def test_every_path_that_is_named_is_there() -> None:
    missing = {
        f"{name}: {path}"
        for name, text in _texts().items()
        for path in PATH.findall(text)
        if not _there(path) and not NOT_FILES.match(path)
    }
    assert sorted(missing) == []


def test_every_page_in_capitals_that_is_named_is_there() -> None:
    pages = {Path(name).name for name in tracked()}
    missing = {f"{name}: {page}" for name, text in _texts().items() for page in PAGE.findall(text) if page not in pages}
    assert sorted(missing) == []


def test_every_design_page_is_listed_in_its_index() -> None:
    folder = ROOT / "docs" / "design"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in sorted(folder.glob("*.md")) if f"]({page.name})" not in index] == ["README.md"]


def _there(path: str) -> bool:
    """As it stands, or without the ending that a sentence leaves out; a module's attribute is one of its file."""
    candidates = (path, f"{path}.py", f"{path.rpartition('.')[0]}.py", path.rstrip("."))
    return any((ROOT / candidate).exists() for candidate in candidates if candidate)
