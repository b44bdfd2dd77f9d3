"""A PostgreSQL connection with a timeout for answers, which renews the idle connections of the pool if it breaks."""

from typing import Any, ClassVar

import psycopg
from psycopg_pool import ConnectionPool


class PostgresConnection(psycopg.Connection[Any]):
    """A connection with a timeout for each answer. libpq and psycopg wait without limit for a server that stops responding.

    `timeout` is in seconds; None means no limit. After a timeout, the outcome of the statement is unknown, as after a broken
    connection.
    """

    timeout: ClassVar[float | None] = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        is_own_timeout = timeout is None
        try:
            return super().wait(gen, interval, self.timeout if is_own_timeout else timeout)
        except psycopg.errors._WaitTimeout:
            if not is_own_timeout:
                raise
            self.pgconn.finish()  # otherwise a late answer would be taken for the answer of the next statement
            self._renew_idle_connections()
            raise psycopg.OperationalError("the database took too long") from None
        except psycopg.OperationalError:
            if self.closed:
                self._renew_idle_connections()
            raise

    def _renew_idle_connections(self) -> None:
        """Renews the idle connections, which a restart of PostgreSQL also breaks.

        The pool would detect them one by one while a request waits, with a growing delay after each.
        """
        if isinstance(self._pool, ConnectionPool):
            self._pool.drain()
