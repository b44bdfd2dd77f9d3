"""A connection to PostgreSQL that nobody waits for without end, and whose pool does not keep what broke with it."""

from typing import Any, ClassVar

import psycopg
from psycopg_pool import ConnectionPool


class Connection(psycopg.Connection[Any]):
    """A server that is lost without a word, or stands still, never answers, and neither libpq nor psycopg gives up on it.

    `timeout` is in seconds, for one answer; None waits for ever. The outcome of what was asked is unknown then, as when a
    connection breaks.
    """

    timeout: ClassVar[float | None] = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        is_ours = timeout is None
        try:
            return super().wait(gen, interval, self.timeout if is_ours else timeout)
        except psycopg.errors._WaitTimeout:
            if not is_ours:
                raise
            self.pgconn.finish()  # the answer may still come, to somebody else's question
            self._renew_the_others()
            raise psycopg.OperationalError("the database took too long") from None
        except psycopg.OperationalError:
            if self.closed:
                self._renew_the_others()
            raise

    def _renew_the_others(self) -> None:
        """Those that lie idle broke as well when PostgreSQL was restarted. The pool would find out one by one, with a pause
        after each that doubles, while the request waits."""
        if isinstance(self._pool, ConnectionPool):
            self._pool.drain()
