"""Which servers the suite can use: `python -m tests.servers` asks them once for `bin/test`, and says what is not there."""

import os
import shlex
import sys
from contextlib import closing

import psycopg
import pytest
import redis


DATABASE = os.environ.get("TEST_DATABASE_URL") or "postgresql://postgres@127.0.0.1:5432/strongroom"
REDIS = os.environ.get("TEST_REDIS_URL") or "redis://127.0.0.1:6379/15"


def postgresql_url() -> str:
    """Skips the test without PostgreSQL, and fails it in CI."""
    return _wanted("TEST_POSTGRESQL_URL", "PostgreSQL")


def redis_url() -> str:
    """Skips the test without Redis, and fails it in CI."""
    return _wanted("TEST_REDIS_URL", "Redis")


def _wanted(name: str, server: str) -> str:
    if url := os.environ.get(name):
        return url
    reason = f"{server} does not answer, or this was not started by bin/test"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def main() -> int:
    missing = []
    found = {"TEST_POSTGRESQL_URL": "", "TEST_REDIS_URL": ""}
    try:
        # The database itself need not exist: each run makes its own test database beside it.
        psycopg.connect(DATABASE, dbname="postgres", connect_timeout=3).close()
        found["TEST_POSTGRESQL_URL"] = DATABASE
    except psycopg.Error:
        missing.append("PostgreSQL does not answer: nothing runs on it (TEST_DATABASE_URL names it)")
    try:
        with closing(redis.Redis.from_url(REDIS, socket_connect_timeout=3)) as server:
            server.ping()
        found["TEST_REDIS_URL"] = REDIS
    except redis.RedisError:
        missing.append("Redis does not answer: what needs it is skipped (TEST_REDIS_URL names it)")
    if not os.environ.get("S3_TEST_ENDPOINT_URL"):
        missing.append('no real S3 server: what needs one is skipped (eval "$(.ci/ceph up)" starts one)')
    for line in missing:
        sys.stderr.write(f"== {line}\n")
    for name, url in found.items():
        sys.stdout.write(f"export {name}={shlex.quote(url)}\n")
    return 1 if missing and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
