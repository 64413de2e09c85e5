"""`setup` and `teardown`: prepare the mailer's database, look whether it is prepared, take everything off again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stream.cli.call import Call, command
from stream.core.errors import ConfigurationError, SentstreamError
from stream.core.finding import Finding

if TYPE_CHECKING:
    from connectors.kafka.topics import Difference
    from connectors.postgres.connect import Connection
    from connectors.postgres.setup import Blocker, Plan, Progress, Reports, Step, Wanted

app = typer.Typer()

_SETTINGS = ("slot_name", "slot_kind", "publication", "mailer_schema", "write_back", "kafka_bootstrap_servers")
_SETUP_EXAMPLES = """Examples:

`sentstream setup`: one role owns the tables and may replicate.

`sentstream setup --part owner --role sentstream`, then as that role `sentstream setup --part replication`: two roles.

`sentstream setup --dry-run | psql "$SENTSTREAM_DATABASE_URL"`: the SQL that it runs, for a DBA."""


@command(app, "setup", shows=_SETTINGS, epilog=_SETUP_EXAMPLES)
def setup(
    call: Call,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL for a DBA, and change nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is missing; exit 1 when something is.")] = False,
    part: Annotated[
        Literal["all", "owner", "replication"],
        typer.Option(help="owner: index, identity, publication, schema; replication: the slot."),
    ] = "all",
    replica_identity: Annotated[
        Literal["index", "full"] | None,
        typer.Option(help="How old rows reach the WAL; default: as it was set up, at first index."),
    ] = None,
    role: Annotated[
        str | None, typer.Option(metavar="NAME", help="Grant this role what running needs (owner's part).")
    ] = None,
    release_columns: Annotated[
        bool,
        typer.Option(
            "--release-columns", help="Take column lists off, for a migration of the mailer; setup puts them back."
        ),
    ] = False,
) -> int:
    """Prepare the mailer's database: index, replica identity, publication, schema, slot. Idempotent."""
    from connectors.postgres.setup import Wanted, plan_of, script, set_up

    if dry_run and check:
        raise ConfigurationError("--dry-run and --check exclude each other.", "Give one of them.")
    if part == "replication" and (role or release_columns or replica_identity):
        raise ConfigurationError(
            "--role, --release-columns and --replica-identity belong to the owner's part.", "Use --part owner."
        )
    settings = call.settings
    wanted = Wanted(
        slot=settings.slot_name,
        publication=settings.publication,
        mailer_schema=settings.mailer_schema,
        temporary_slot=settings.slot_kind == "temporary",
        identity=replica_identity,
        role=role,
        write_back=settings.write_back,
        release=release_columns,
        part=part,
    )
    with call.connect("setup") as conn:
        if check:
            return _check(call, plan_of(conn, wanted), wanted)
        if dry_run:
            made = plan_of(conn, wanted)
            if call.json:
                call.print_json(_plan_json(made))
            else:
                call.out.out(script(made.steps, database=conn.info.dbname), end="")
                _print_topics(call)
            _print_obstacles(call, made.obstacles)
            return 1 if made.obstacles else 0
        with call.connect("setup watch") as watch, _Teller(call) as tell:
            made = set_up(conn, wanted, tell.reports(watch))
        next_step = _next_part(conn, wanted) or "run `sentstream doctor`, then `sentstream run`"
    topics, found = ([], 0) if part == "owner" or not settings.kafka else _topics(call)
    _print_done(call, made, "Everything was in place already.", "Done.", next_step, topics)
    return found


def _next_part(conn: Connection, wanted: Wanted) -> str:
    """How the slot is made, where only the owner's part was asked for and it is missing; else empty."""
    from connectors.postgres.setup import plan_of

    if wanted.part != "owner" or plan_of(conn, replace(wanted, part="replication")).done:
        return ""
    return "`sentstream setup --part replication` as a role with REPLICATION"


def _print_topics(call: Call) -> None:
    """How an administrator makes the topics that are missing; as remarks, for what is printed here is SQL."""
    if call.settings.kafka:
        from stream.cli.topics import look

        for difference in look(call, make=False):
            call.out.out(f"-- {difference.finding}\n--   {difference.fix}\n", end="")


def _topics(call: Call) -> tuple[list[str], int]:
    """Make Kafka's topics; the names of those made, and 1 where something about them keeps sentstream from running."""
    from stream.cli import topics

    made, left = topics.make(call)
    for topic in made:
        call.err.print(f"- Topic {topic}")
    return made, topics.report(call, left, checking=False)


def _check(call: Call, made: Plan, wanted: Wanted) -> int:
    """Say what is missing, in PostgreSQL and in Kafka; 1 when it is anything. Where Kafka can't be looked at, what is
    known of PostgreSQL is said all the same, as no more than that, before the error."""
    if not call.settings.kafka or wanted.part == "owner":
        return _print_missing(call, made, wanted)
    from stream.cli.topics import look, report

    differences: list[Difference] = []
    failure: SentstreamError | None = None
    try:
        differences = look(call, make=False)
    except SentstreamError as error:
        failure = type(error)(f"Kafka's topics could not be looked at: {error.what}", error.fix)
        failure.__cause__ = error
    code = _print_missing(call, made, wanted, differences, postgres_alone=failure is not None or bool(differences))
    if failure is not None:
        raise failure
    return max(code, report(call, differences, checking=True))


@command(app, "teardown", shows=_SETTINGS[:-2], epilog="Example: `sentstream teardown --yes`")
def teardown(
    call: Call,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    part: Annotated[
        Literal["all", "owner", "replication"],
        typer.Option(help="replication: the slot, which goes first; owner: the rest."),
    ] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL for a DBA, and change nothing.")] = False,
) -> int:
    """Drop all that setup made, the slot first; restore the old replica identity; leave the mailer's data alone."""
    from connectors.postgres.setup import script, tear_down, teardown_plan_of

    settings = call.settings
    names = (settings.slot_name, settings.publication, settings.mailer_schema)
    with call.connect("teardown") as conn:
        one = None if part == "all" else part
        made = teardown_plan_of(conn, *names, one)
        if dry_run:
            if call.json:
                call.print_json(_plan_json(made))
            else:
                call.out.out(script(made.steps, database=conn.info.dbname, command="teardown"), end="")
            _print_obstacles(call, made.obstacles)
            return 1 if made.obstacles else 0
        if made.steps and not yes:
            _confirm(call, made, conn.info.dbname)
        with call.connect("teardown watch") as watch, _Teller(call) as tell:
            made = tear_down(conn, *names, tell.reports(watch), part=one)
    left = {
        "all": "Nothing of sentstream is left here.",
        "owner": "Nothing of the owner's part is left here.",
        "replication": "No slot is left here.",
    }
    next_step = "`sentstream teardown --part owner` as the owner of the tables" if part == "replication" else ""
    _print_done(call, made, left[part], "Done; the mailer's data is as it was.", next_step)
    return 0


def _confirm(call: Call, made: Plan, database: str) -> None:
    """Ask a person; ConfigurationError where there is none."""
    for step in made.steps:
        call.err.print(f"- {step.purpose}")
    if call.json or not sys.stdin.isatty():
        raise ConfigurationError("There is no terminal to ask on.", "Add --yes to do all of that.")
    if not typer.confirm(f"Do all of that in database {database}?", err=True):
        raise ConfigurationError("Nothing was changed.", "")


def _print_missing(
    call: Call, made: Plan, wanted: Wanted, topics: Sequence[Difference] = (), *, postgres_alone: bool = False
) -> int:
    """What `setup` would do in PostgreSQL; 1 when it is anything. ``postgres_alone``: Kafka's part is not in place, or
    not known to be."""
    if call.json:
        from stream.cli.topics import as_json

        call.print_json({**_plan_json(made), **({"topics": as_json(topics)} if topics else {})})
        return 0 if made.done else 1
    for step in made.steps:
        call.out.print(f"missing  {step.purpose}", style="yellow")
    _print_obstacles(call, made.obstacles)
    for note in made.notes:
        call.err.print(note)
    if made.done:
        what = "What setup makes in PostgreSQL" if postgres_alone else "Everything that setup makes"
        call.out.print(f"{what} is in place.", style="green")
        return 0
    if made.steps:
        part = "" if wanted.part == "all" else f" --part {wanted.part}"
        call.out.print(f"Next: `sentstream setup{part}`, or `sentstream setup{part} --dry-run` to read the SQL first.")
    return 1


def _print_obstacles(call: Call, obstacles: Sequence[Finding]) -> None:
    for obstacle in obstacles:
        call.err.print(f"in the way  {obstacle.finding}", style="red")
        call.err.print(f"            {obstacle.fix}")


def _print_done(call: Call, made: Plan, nothing: str, done: str, next_step: str, topics: Sequence[str] = ()) -> None:
    if call.json:
        steps = [_step_json(step) for step in made.steps]
        call.print_json({"done": steps, "notes": list(made.notes), **({"topics": list(topics)} if topics else {})})
        return
    for note in made.notes:
        call.out.print(note, style="yellow")
    call.out.print(done if made.steps or topics else nothing, style="green")
    if (made.steps or topics) and next_step:
        call.out.print(f"Next: {next_step}.")


class _Teller:
    """Tells on standard error what is going on: on a terminal with a line that follows the build of the index."""

    def __init__(self, call: Call) -> None:
        self._err = call.err
        self._status = call.err.status("") if call.err.is_terminal else None

    def __enter__(self) -> _Teller:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def reports(self, watch: Connection) -> Reports:
        """What to report while steps run; ``watch`` sees who blocks them."""
        from connectors.postgres.setup import Reports

        return Reports(watch, self.step, self.wait, self.progress)

    def step(self, step: Step) -> None:
        self._err.print(f"- {step.purpose}")

    def wait(self, blocker: Blocker) -> None:
        self._err.print(f"  waiting for {blocker}", style="yellow")

    def progress(self, progress: Progress) -> None:
        if self._status is not None:
            share = f" {100 * progress.done // progress.total} %" if progress.total else ""
            self._status.update(f"{progress.phase}{share}")
            self._status.start()


def _plan_json(made: Plan) -> dict[str, Any]:
    return {
        "missing": [_step_json(step) for step in made.steps],
        "obstacles": [
            {"code": obstacle.code, "what": obstacle.finding, "fix": obstacle.fix, "part": obstacle.part}
            for obstacle in made.obstacles
        ],
        "notes": list(made.notes),
    }


def _step_json(step: Step) -> dict[str, Any]:
    return {"code": step.code, "purpose": step.purpose, "part": step.part, "sql": list(step.statements)}
