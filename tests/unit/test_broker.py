"""The broker of files: what is read is what was sent, however close the two come."""

import subprocess
import sys
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu import Connection

from tests.live.child_process import killed_with_parent
from tests.live.server import ROOT


pytestmark = pytest.mark.server
SEND = "import sys; from tests.unit.test_broker import send; send(sys.argv[1], int(sys.argv[2]))"


def channel(folder: str) -> Any:
    options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": f"{folder}/control"}
    return Connection("filesystem://", transport="config.broker:Transport", transport_options=options).channel()


def send(folder: str, count: int) -> None:
    sender = channel(folder)
    for number in range(count):
        sender._put("celery", {"body": "x" * 1000, "number": number})


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.long)])
def test_messages_are_whole_whenever_they_are_read(tmp_path: Path, count: int) -> None:
    received: list[int] = []
    reader = channel(str(tmp_path))
    with subprocess.Popen(killed_with_parent(sys.executable, "-c", SEND, tmp_path, count), cwd=ROOT) as sender:
        while len(received) < count:
            try:
                received.append(reader._get("celery")["number"])
            except Empty:
                assert sender.poll() in {None, 0}
    assert sorted(received) == list(range(count))
    assert not list(tmp_path.glob("*.msg"))
