"""Celery's broker of files, with messages that appear when they are whole.

The reader of kombu's own moves a file and reads it whether its writer is done or not: then the worker dies of a message that is
no JSON, and everything that `bin/run` runs with it.
"""

from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import filesystem
from kombu.utils.json import dumps


SOON = 0.4  # seconds, two polls


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]  # as kombu's own
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        draft = Path(self.data_folder_out) / f".{name}"  # a name that no queue looks for
        draft.write_text(dumps(payload))
        draft.rename(draft.with_name(name))


class Transport(filesystem.Transport):
    Channel = Channel
    polling_interval = 0.2  # seconds

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Celery gives two seconds to each of these, and stops between two of them: Ctrl-C would wait for three."""
        super().drain_events(connection, timeout=None if timeout is None else min(timeout, SOON), **kwargs)
