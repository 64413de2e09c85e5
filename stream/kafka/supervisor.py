"""`run` with Kafka: the four roles as children of one process.

It starts reader, workers, reconciler and HTTP, restarts what dies (with back-off), and ends them in order: first the
reader, which waits until Kafka has everything, then the workers, which flush, then the others. A child that exits with
1 or 2 has a wrong database or configuration, which a restart can't cure: then all end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from connectors.kafka.topics import ensure, require
from stream.config.settings import PREFIX, Settings
from stream.config.sources import to_environment
from stream.core.errors import SentstreamError
from stream.core.pace import Backoff
from stream.service.signals import until_signalled

log = logging.getLogger("sentstream.run")

#: seconds that all roles together may take to leave, before the rest is killed: below every limit in deploy/; and those
#: for which the next role is not told to leave
PATIENCE: Final = 18.0
ORDERLY: Final = 5.0
#: seconds that a role must live for its next death to count as the first again
SETTLED: Final = 30.0
#: exit codes that a restart does not cure: a precondition that is not met, a wrong configuration
_HOPELESS: Final = (1, 2)
_UNREACHABLE: Final = 3


@dataclass(slots=True)
class Role:
    """One child. ``words``: its command; ``deaths``: how often it ended without being told to; ``withheld``: settings
    that it has no use for, and so doesn't get: they are secrets."""

    name: str
    words: tuple[str, ...]
    withheld: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(first=0.5, most=15.0))
    began_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0
    settled: bool = False


def roles_of(settings: Settings) -> list[Role]:
    """The children, in the order in which they are started and ended."""
    # those that serve /metrics need the token
    token = () if settings.metrics_address is not None else ("http_token",)
    roles = [Role("read", ("read",), withheld=(*token, "notify_url"))]
    for number in range(1, settings.kafka_workers + 1):
        words: tuple[str, ...] = ("work",)
        if settings.kafka_instance:
            words += ("--kafka-instance", f"{settings.kafka_instance}-{number}")
        name = f"work {number}" if settings.kafka_workers > 1 else "work"
        roles.append(Role(name, words, withheld=(*token, "notify_url")))
    kafka = ("kafka_sasl_password", "kafka_ssl_keyfile_password")
    roles.append(Role("reconcile", ("reconcile",), withheld=(*token, *kafka)))
    if settings.metrics_address is not None:
        host, port = settings.metrics_address
        for number, role in enumerate(roles):
            where = f"[{host}]" if ":" in host else host
            role.words += ("--metrics-listen", f"{where}:{port + number if port else 0}")
    if settings.http_address is not None:
        roles.append(Role("serve", ("serve",), withheld=("notify_url",)))
    return roles


def _is_withheld(variable: str, role: Role) -> bool:
    return variable.removesuffix("_FILE").removeprefix(PREFIX).lower() in role.withheld


class Supervisor:
    """Starts, restarts and ends the children. ``command``: what runs ``sentstream``."""

    def __init__(
        self,
        settings: Settings,
        roles: Sequence[Role] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "stream.cli"),
    ) -> None:
        self.roles = list(roles_of(settings) if roles is None else roles)
        self._command = tuple(command)
        self._environment = {**os.environ, **to_environment(settings)}
        self.stop = threading.Event()

    def run(self) -> int:
        """Until ``stop`` is set, or a child ends for good; its exit code."""
        code = 0
        try:
            for role in self.roles:
                self._start(role)
            while not self.stop.wait(0.1):
                for role in self.roles:
                    ended = self._look(role)
                    if ended is not None:
                        code = ended
                        self.stop.set()
                        break
        finally:
            self._end_all()
        return code

    def hang_up(self) -> None:
        """Pass SIGHUP on: every role reads its settings again."""
        for role in self.roles:
            if role.process is not None and role.process.poll() is None:
                role.process.send_signal(signal.SIGHUP)

    def _start(self, role: Role) -> None:
        role.process = subprocess.Popen(
            [*self._command, *role.words, "--with-parent", str(os.getpid())],
            env={name: value for name, value in self._environment.items() if not _is_withheld(name, role)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us: we end them in order
        )
        role.began_at = time.monotonic()
        log.info("%s started, pid %d", role.name, role.process.pid)

    def _look(self, role: Role) -> int | None:
        """Restart a role that died; returns the exit code where a restart can't help."""
        now = time.monotonic()
        if role.process is None:
            if now >= role.start_at:
                self._start(role)
            return None
        code = role.process.poll()
        if code is None:
            if now - role.began_at > SETTLED:
                role.settled, role.backoff = True, role.backoff.succeeded()
            return None
        if code in _HOPELESS or (code == _UNREACHABLE and not role.settled and not role.deaths):
            log.error("%s ended with %d: all end", role.name, code)
            return code
        role.deaths += 1
        role.process = None
        role.backoff = role.backoff.failed()
        role.start_at = now + role.backoff.pause
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        log.warning("%s %s (death %d); started again in %.1f s", role.name, how, role.deaths, role.backoff.pause)
        return None

    def _end_all(self) -> None:
        """In order, each with some seconds before the next is told; what is left at the end is killed."""
        deadline = time.monotonic() + PATIENCE
        living = [(role, role.process) for role in self.roles if role.process and role.process.poll() is None]
        for role, process in living:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(ORDERLY, max(0.0, deadline - time.monotonic())))
                log.info("%s ended", role.name)
        for role, process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s did not end within %.0f s and is killed", role.name, PATIENCE)
                process.kill()
                process.wait()


def run(settings: Settings, reload: Callable[[], Settings] | None = None) -> int:
    """Run the Kafka mode until SIGTERM or Ctrl-C; 0, or the exit code of the role that could not go on."""
    settings.require_database()
    settings.require_kafka()
    require(ensure(settings))
    supervisor = Supervisor(settings)

    def on_hup(_signal: int, _frame: object) -> None:
        if reload is not None:
            try:
                reload()
            except SentstreamError as error:
                log.error("settings were not read again: %s", error)
                return
        supervisor.hang_up()

    with until_signalled(supervisor.stop, on_hup, within=None):
        return supervisor.run()
