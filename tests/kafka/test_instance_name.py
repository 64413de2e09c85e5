"""Each worker of a host finds a name of its own, whatever lies about in the shared temporary folder."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from stream.config.settings import Settings
from stream.core.errors import ConfigurationError
from stream.kafka import instance_name
from stream.kafka.instance_name import InstanceName

HOST = socket.gethostname()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def lock_file(folder: Path, number: int) -> Path:
    return folder / f"sentstream-work-sentstream-{os.getuid()}-{number}.lock"


def test_workers_of_one_host_have_the_lowest_numbers_that_are_free(folder: Path) -> None:
    with InstanceName(Settings()) as first:
        with InstanceName(Settings()) as second:
            assert (first.name, second.name) == (f"{HOST}-1", f"{HOST}-2")
        with InstanceName(Settings()) as third:
            assert third.name == f"{HOST}-2"
    assert lock_file(folder, 1).exists()


def test_a_name_that_is_set_needs_no_file(folder: Path) -> None:
    with InstanceName(Settings(kafka_instance="mail")) as instance:
        assert instance.name == "mail"
    assert list(folder.iterdir()) == []


def test_what_others_left_in_the_folder_keeps_no_worker_from_starting(folder: Path) -> None:
    lock_file(folder, 1).mkdir()
    lock_file(folder, 2).symlink_to(folder / "elsewhere")
    os.mkfifo(lock_file(folder, 3))
    with InstanceName(Settings()) as instance:
        assert instance.name in (f"{HOST}-3", f"{HOST}-4")
    assert not (folder / "elsewhere").exists()


def test_where_no_file_can_be_opened_the_message_names_the_setting(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_name, "_NUMBERS", 3)
    lock_file(folder, 1).mkdir()
    lock_file(folder, 2).mkdir()
    with pytest.raises(ConfigurationError, match="SENTSTREAM_KAFKA_INSTANCE"):
        InstanceName(Settings()).__enter__()
