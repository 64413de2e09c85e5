"""The HTTP server's child process: serves what the parent flushes, and ends with the parent.

``python -m stream.web.child_main PIPE LISTEN``: two inherited file descriptors. Started by `stream.web.child_process`.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import struct
import sys
from typing import Final

from stream.config.settings import Settings
from stream.service import logs
from stream.web.context import Context
from stream.web.uvicorn_server import run_server

#: counting has priority over serving
_NICE: Final = 10


def main(pipe_fd: int, listen_fd: int) -> None:
    """Serve until SIGTERM, or until the parent is gone."""
    os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends this process
    pipe, sock = socket.socket(fileno=pipe_fd), socket.socket(fileno=listen_fd)
    kind, settings = _read(pipe)
    assert kind == "settings"
    assert isinstance(settings, Settings)
    logs.configure(settings.log_level, settings.log_format, settings.secrets())
    run_server(settings, sock, lambda context: _feed(pipe, context), process="sentstream_http")


async def _feed(pipe: socket.socket, context: Context) -> None:
    """Apply what the parent sends to the live state; end this process when the parent is gone."""
    reader, writer = await asyncio.open_connection(sock=pipe.dup())
    metrics = b""
    context.texts.append(lambda: metrics)
    try:
        while True:
            writer.write(b".")
            (size,) = struct.unpack("!I", await reader.readexactly(4))
            _, flushes, text = pickle.loads(await reader.readexactly(size))  # noqa: S301 - from our parent
            metrics = metrics if text is None else text
            context.live.take(flushes)
    except (asyncio.IncompleteReadError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        writer.close()


def _read(pipe: socket.socket) -> tuple[str, object]:
    (size,) = struct.unpack("!I", _exactly(pipe, 4))
    kind, value = pickle.loads(_exactly(pipe, size))  # noqa: S301 - from our parent
    return kind, value


def _exactly(pipe: socket.socket, size: int) -> bytes:
    body = b""
    while len(body) < size:
        piece = pipe.recv(size - len(body))
        if not piece:
            sys.exit(0)
        body += piece
    return body


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
