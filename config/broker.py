"""A filesystem broker for Celery that publishes messages atomically.

A reader of kombu's own filesystem transport can read a message before it is completely written. The invalid JSON ends the worker,
and with it all processes of `bin/run`.
"""

from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import filesystem
from kombu.utils.json import dumps


MAX_WAIT = 0.4  # seconds; two polls


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]  # as kombu's own
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        draft = Path(self.data_folder_out) / f".{name}"  # readers ignore this name
        draft.write_text(dumps(payload))
        draft.rename(draft.with_name(name))


class Transport(filesystem.Transport):
    Channel = Channel
    polling_interval = 0.2  # seconds

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Waits at most `MAX_WAIT`. Celery asks for two seconds and stops only between calls, so Ctrl-C would take seconds."""
        super().drain_events(connection, timeout=None if timeout is None else min(timeout, MAX_WAIT), **kwargs)
