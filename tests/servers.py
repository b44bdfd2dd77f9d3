"""Finds the servers that tests can use. `python -m tests.servers` prints their addresses as shell commands (`export`)."""

import os
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import redis

from tests import needs


ROOT = Path(__file__).resolve().parents[1]
DATABASE = os.environ.get("TEST_DATABASE_URL") or "postgresql://postgres@127.0.0.1:5432/strongroom"
REDIS = os.environ.get("TEST_REDIS_URL") or "redis://127.0.0.1:6379/15"


def find() -> dict[str, str]:
    """Returns the variables of the servers that answer: those of `needs.SERVERS`, and the credentials for the S3 server."""
    return _postgresql() | _redis() | _ceph()


def _postgresql() -> dict[str, str]:
    try:
        # The database itself need not exist: each run creates its own test database on the same server.
        psycopg.connect(DATABASE, dbname="postgres", connect_timeout=3).close()
    except psycopg.Error:
        return {}
    return {"TEST_POSTGRESQL_URL": DATABASE}


def _redis() -> dict[str, str]:
    try:
        with closing(redis.Redis.from_url(REDIS, socket_connect_timeout=3)) as server:
            server.ping()
    except redis.RedisError:
        return {}
    return {"TEST_REDIS_URL": REDIS}


def _ceph() -> dict[str, str]:
    """The server that the environment names, or the one that `.ci/ceph up` started."""
    if os.environ.get("S3_TEST_ENDPOINT_URL"):
        names = ("S3_TEST_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
        return {name: os.environ[name] for name in names if name in os.environ}
    started = subprocess.run([ROOT / ".ci" / "ceph", "status"], capture_output=True, text=True, check=False)
    assignments = [line.removeprefix("export ").partition("=") for line in started.stdout.splitlines()]
    return {name: value for name, _, value in assignments}


def main() -> None:
    found = find()
    os.environ |= found
    for server in needs.SERVERS:
        if not needs.is_present(server):
            sys.stderr.write(f"== {needs.install_hint(server)}\n")
    for name, value in found.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


if __name__ == "__main__":
    main()
