"""`config`: the effective settings and where each comes from; `--reference`: what each of them means."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stream.cli.call import Call, command
from stream.config.settings import GROUPS, is_reloadable, setting_group, setting_names
from stream.config.sources import unknown_variables

app = typer.Typer()


@command(app, "config", shows="all", epilog="Example: `sentstream config --json | jq .recount_interval`")
def config(
    call: Call,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print what every setting means, in Markdown (docs/configuration.md).")
    ] = False,
) -> None:
    """The effective settings and where each comes from; secrets are masked."""
    if reference:
        from stream.cli.reference import reference_text

        call.out.out(reference_text(), end="")
        return
    settings = call.settings
    unknown = unknown_variables()
    if call.json:
        values: dict[str, Any] = {
            name: {
                "value": settings.shown(name),
                "origin": settings.origin(name).kind,
                "where": settings.origin(name).where,
            }
            for name in setting_names()
        }
        call.print_json({"settings": values, "file": call.sources.path, "unknown_variables": unknown})
        return
    width = max(map(len, setting_names()))
    for group in GROUPS:
        call.out.print(group, style="bold")
        for name in setting_names():
            if setting_group(name) == group:
                origin = settings.origin(name)
                line = f"  {name.upper():<{width}}  {_as_words(settings.shown(name)):<28}"
                call.out.print(line, end=" ", soft_wrap=True)
                call.out.print(str(origin), style="dim" if origin.kind == "default" else "green", soft_wrap=True)
    reloadable = sum(map(is_reloadable, setting_names()))
    call.err.print(f"SIGHUP takes {reloadable} of them anew: intervals, allowances and LOG_LEVEL.", style="dim")


def _as_words(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(value) or "-"
    return str(value) if value != "" else "-"
