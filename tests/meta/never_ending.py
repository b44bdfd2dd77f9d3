"""The test that tests/meta/test_interruption.py runs and interrupts. Its filename keeps it out of the collection of the suite."""

import os
import time
from pathlib import Path

from tests.live.server import Server


def test_never_ends(tmp_path: Path) -> None:
    """Has no teardown: the server must end with this process, however it ends."""
    server = Server(tmp_path / "home")
    server.copy_home_from(Path(os.environ["FIRST_HOME"]))
    server.start()
    Path(os.environ["STARTED"]).touch()
    time.sleep(100)
