"""A certificate for 127.0.0.1 that signs itself, for servers of tests that demand TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path


def self_signed(key: Path, certificate: Path) -> None:
    """Write both as PEM; the certificate is its own authority."""
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
