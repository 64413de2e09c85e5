"""Pages lead somewhere: every link inside the repository, and every `path` that a page names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")], key=str)
LINK = re.compile(r"(?<!\\)!?\[[^\]]*\]\(([^()\s]+(?:\([^()]*\))?[^()\s]*)\)")
OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:|//")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
#: pages that name files of the code, held to that
CODE_PAGES = ("docs/architecture.md", "docs/guarantees.md", "CONTRIBUTING.md")
FOLDERS = ("stream", "connectors", "tests", "benchmarks", "docs", "deploy", "scripts")


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text(encoding="utf-8")))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(page), re.MULTILINE):
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        nth = found.get(name, 0)
        found[name] = nth + 1
        names.add(f"{name}-{nth}" if nth else name)
    return frozenset(names)


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for link in LINK.findall(prose(page)):
            if OUTSIDE.match(link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                broken.append(f"{page.relative_to(ROOT)}: {link}: no such heading")
    assert broken == []


def test_files_that_a_page_names_are_there() -> None:
    missing = []
    for page in CODE_PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        named = set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)", text))
        missing += [f"{page}: {path}" for path in sorted(named) if not (ROOT / path).exists()]
    assert missing == []


def test_pages_that_the_code_points_to_are_there() -> None:
    missing = []
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            named = set(re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text(encoding="utf-8")))
            missing += [f"{file.relative_to(ROOT)}: {path}" for path in named if not (ROOT / path).exists()]
    assert missing == []


def test_the_picture_of_the_flow_is_well_formed_and_says_what_it_shows() -> None:
    picture = ET.parse(ROOT / "docs" / "pictures" / "flow.svg").getroot()
    assert picture.find("{http://www.w3.org/2000/svg}title") is not None
    assert picture.find("{http://www.w3.org/2000/svg}desc") is not None
