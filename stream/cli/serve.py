"""`serve`: the HTTP API and the dashboard, in a process of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.call import Call, command

app = typer.Typer()


@command(
    app,
    "serve",
    shows=(
        "http_listen",
        "http_token",
        "http_allowed_hosts",
        "http_allowed_origins",
        "http_max_streams",
        "http_trusted_proxies",
        "kafka_bootstrap_servers",
        "mailer_schema",
    ),
    service=True,
    epilog="Example: `SENTSTREAM_HTTP_TOKEN=... sentstream serve --http-listen 0.0.0.0:8087`",
)
def serve(
    call: Call, with_parent: Annotated[int, typer.Option(hidden=True, help="A process to end with.")] = 0
) -> None:
    """Serve the HTTP API and the dashboard until stopped. `run` has it built in; in the Kafka mode it is a role."""
    from stream.web import server

    settings = call.settings
    settings.require_database()
    if with_parent:
        from stream.service.watchdog import end_with

        end_with(with_parent)
    if not settings.kafka:
        server.serve(settings)
        return
    from stream.web.progress_topic import follow_topic

    server.serve(settings, follow_topic)
