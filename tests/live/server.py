"""Runs `manage.py serve` with its web server, worker and beat, in a separate home folder on a free loopback port."""

import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests import stores
from tests.live.child_process import killed_with_parent
from tests.live.ports import hold_port
from tests.live.waiting import LIMIT, has_ended, wait_for


ROOT = Path(__file__).resolve().parents[2]
OWN_PREFIX = ".strongroom/"  # objects of the server itself, which it may write during any test


class Server:
    """An installation and, after a start, its processes."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.port = hold_port(self)
        self.home = home
        self.url = f"http://127.0.0.1:{self.port}"
        # The environment of this process holds the settings of the tests, which the server must not inherit.
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        defaults = {"STRONGROOM_HOME": str(home), "PORT": str(self.port), "HTTPS": "0", "STATIC_FINDERS": "1"}
        self.environment = inherited | defaults | environment
        self.database = environment.get("DATABASE_URL", "")  # where `sql` connects; tests set it to bypass a faulty proxy
        self.tracer: tuple[str, ...] = ()  # the command of a program that starts and traces the server
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        """Standard output since the last start."""
        return (self.home / "stdout").read_text()

    @property
    def log(self) -> str:
        """Standard error since the first start."""
        return (self.home / "stderr").read_text()

    @property
    def demo(self) -> dict[str, Any]:
        demo: dict[str, Any] = json.loads((self.home / "demo.json").read_text())
        return demo

    def copy_home_from(self, other: Path) -> None:
        """Copies the secrets, users and database of another installation, which replaces the slow first start."""
        shutil.copytree(other, self.home, ignore=shutil.ignore_patterns("stdout", "stderr"))

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts the server without waiting until it is ready."""
        self.home.mkdir(exist_ok=True)
        self.manage("-m", "config.install")
        with (self.home / "stdout").open("wb") as stdout, (self.home / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                killed_with_parent(*self.tracer, sys.executable, "manage.py", "serve"),
                cwd=ROOT,
                env=self.environment,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        return self.process

    def start(self) -> "Server":
        process = self.launch()
        wait_for(lambda: "Strongroom serves" in self.output or process.poll() is not None, lambda: self.log)
        assert process.poll() is None, self.log
        return self

    def processes(self) -> list[psutil.Process]:
        """Returns all live processes of the server's process group."""
        if self.process is None:
            return []
        found = []
        for pid in psutil.pids():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getpgid(pid) == self.process.pid and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def memory(self) -> int:
        """Returns the memory of all processes in bytes, with each shared page counted once (PSS)."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def kill(self) -> None:
        """Kills all processes with SIGKILL, as a power failure would."""
        killed = self.processes()
        for process in killed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait()
        wait_for(lambda: all(map(has_ended, killed)))

    def manage(self, *command: str) -> str:
        """Runs `manage.py COMMAND`, or `-m MODULE`, on this installation, and returns its output."""
        program = command if command[0] == "-m" else ("manage.py", *command)
        result = subprocess.run([sys.executable, *program], cwd=ROOT, env=self.environment, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()

    def web_workers(self) -> list[psutil.Process]:
        """Returns the processes that answer requests."""
        assert self.process is not None
        (master,) = [child for child in psutil.Process(self.process.pid).children() if child.name() == "gunicorn"]
        workers: list[psutil.Process] = master.children()
        return workers

    def web_worker(self) -> psutil.Process:
        """Returns the only process that answers requests."""
        (worker,) = self.web_workers()
        return worker

    def descriptors(self) -> int:
        """Returns the number of open descriptors of the web workers, including clients.

        Connections to SQLite do not count, because every thread that has used the database keeps one.
        """
        count = 0
        for worker in self.web_workers():
            for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    count += "sqlite3" not in str(descriptor.readlink())
        return count

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Executes a statement on the database without the server. `?` is the placeholder for values."""
        if self.database:
            with psycopg.connect(self.database, connect_timeout=10) as postgresql:
                cursor = postgresql.execute(statement.replace("?", "%s"), values)
                return cursor.fetchall() if cursor.description else []
        # Django stores and compares datetimes as text, and omits a fraction of zero.
        stored = [value.replace(tzinfo=None).isoformat(" ") if isinstance(value, datetime) else value for value in values]
        with closing(sqlite3.connect(self.home / "strongroom.sqlite3", timeout=LIMIT)) as database, database:
            return database.execute(statement, stored).fetchall()

    def has_no_leftovers(self) -> bool:
        """Returns whether no upload is in progress and no deletion is due. Replaced contents have a grace period of an hour."""
        soon = datetime.now(UTC) + timedelta(minutes=1)
        return not self.sql(
            "SELECT object_key FROM files_upload UNION SELECT object_key FROM files_pendingdeletion WHERE due_at < ?", soon
        )

    def stored_objects(self) -> dict[str, int]:
        """Returns the keys and sizes of the files' objects in the vault, without the proxies between server and store."""
        if bucket := self.environment.get("S3_BUCKET"):
            pages = stores.ceph().client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            sizes = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}
        else:
            vault = self.home / "objects" / "vault"
            sizes = {str(path.relative_to(vault)): path.stat().st_size for path in vault.rglob("*") if path.is_file()}
        return {key: size for key, size in sizes.items() if not key.startswith(OWN_PREFIX)}

    def check_consistency(self) -> None:
        """Asserts that each file has its object, each object has its row, and the counters match the files (INV-06, INV-18)."""
        files = self.sql("SELECT object_key, object_size FROM files_storedfile WHERE status = 'ready'")
        stored = self.stored_objects()
        assert [key for key, size in files if stored.get(key) != size] == []
        known = self.sql("SELECT object_key FROM files_storedfile")
        known += self.sql("SELECT object_key FROM files_upload UNION SELECT object_key FROM files_pendingdeletion")
        assert [key for key in stored if (key.partition(".")[0],) not in known] == []
        counted = "SELECT id, file_count, total_length FROM files_collection"
        there = """
            SELECT files_collection.id, count(length), coalesce(sum(length), 0) FROM files_collection
            LEFT JOIN files_storedfile ON collection_id = files_collection.id GROUP BY files_collection.id
        """
        assert sorted(self.sql(counted)) == sorted((pk, count, int(total)) for pk, count, total in self.sql(there))

    def expire_leases(self) -> None:
        """Backdates the heartbeats of uploads and the leases of the clean-up and of purges, so that they have expired."""
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        self.sql("UPDATE files_upload SET heartbeat_at = ?", long_ago)
        for table in ("files_pendingdeletion", "purge_shard", "purge_destruction"):
            self.sql(f"UPDATE {table} SET lease_at = ? WHERE lease_at IS NOT NULL", long_ago)  # noqa: S608  our own tables

    def object_files(self) -> list[Path]:
        """Returns every file in the local buckets, including unfinished ones.

        Unlike `rglob`, `os.walk` tolerates folders that disappear during the search.
        """
        found = [Path(folder, name) for folder, _, names in os.walk(self.home / "objects") for name in names]
        return [path for path in found if OWN_PREFIX not in f"{path}"]

    def request(self, method: str, path: str, *, token: str = "", body: Any = None) -> tuple[int, Any]:
        """Sends one request to the API; returns the status and the parsed JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        return response.status, json.loads(content) if content else None

    def token(self, role: str = "member") -> str:
        status, pair = self.request("POST", "/api/v1/auth/token/", body=self.demo["users"][role])
        assert status == 200, pair
        access: str = pair["access"]
        return access
