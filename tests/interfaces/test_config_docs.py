"""docs/configuration.md says what the settings say."""

from __future__ import annotations

from pathlib import Path

from stream.cli.reference import reference_text
from stream.config.settings import setting_names

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference_text() + "\n" * (not reference_text().endswith("\n")), (
        "run: sentstream config --reference > docs/configuration.md"
    )


def test_every_setting_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in setting_names() if f"`SENTSTREAM_{name.upper()}`" not in text]
