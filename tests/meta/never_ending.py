"""Not collected by itself: what tests/meta/test_interruption.py runs and interrupts."""

import os
import time
from pathlib import Path

from tests.live.server import Server


def test_that_does_not_end(tmp_path: Path) -> None:
    """Tears nothing down: whatever ends this process has to take the server along."""
    server = Server(tmp_path / "home")
    server.copy_home_from(Path(os.environ["FIRST_HOME"]))
    server.start()
    Path(os.environ["STARTED"]).touch()
    time.sleep(100)
