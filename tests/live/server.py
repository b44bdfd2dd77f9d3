"""The real thing: `manage.py serve` with its web server, worker and beat, in a home of its own on a free port of loopback."""

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
OWN = ".strongroom/"  # what the server keeps for itself, every ten minutes perhaps, in the middle of any test


class Server:
    """An installation, and the processes that serve it while it is started."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.port = hold_port(self)
        self.home = home
        self.url = f"http://127.0.0.1:{self.port}"
        # Nothing of the test's own settings: they stand in this process's environment.
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        defaults = {"STRONGROOM_HOME": str(home), "PORT": str(self.port), "HTTPS": "0", "STATIC_FINDERS": "1"}
        self.environment = kept | defaults | environment
        self.database = environment.get("DATABASE_URL", "")  # where `sql` looks: past whatever fails between it and the server
        self.tracer: tuple[str, ...] = ()  # a program that starts the server and watches it
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        """What it printed since it was last started."""
        return (self.home / "stdout").read_text()

    @property
    def log(self) -> str:
        """Every line on standard error since the first start."""
        return (self.home / "stderr").read_text()

    @property
    def demo(self) -> dict[str, Any]:
        demo: dict[str, Any] = json.loads((self.home / "demo.json").read_text())
        return demo

    def copy_home_from(self, other: Path) -> None:
        """Takes another installation's first start as its own: its secrets, people and database."""
        shutil.copytree(other, self.home, ignore=shutil.ignore_patterns("stdout", "stderr"))

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts it without waiting for it."""
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
        """All that live in its process group."""
        if self.process is None:
            return []
        found = []
        for pid in psutil.pids():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getpgid(pid) == self.process.pid and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def memory(self) -> int:
        """Bytes of all its processes, each shared page counted once (PSS)."""
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
        """All of it at once, as when the machine loses power."""
        killed = self.processes()
        for process in killed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait()
        wait_for(lambda: all(map(has_ended, killed)))

    def manage(self, *command: str) -> str:
        """`manage.py COMMAND`, or `-m MODULE`, on this installation; what it printed."""
        program = command if command[0] == "-m" else ("manage.py", *command)
        result = subprocess.run([sys.executable, *program], cwd=ROOT, env=self.environment, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()

    def web_workers(self) -> list[psutil.Process]:
        """Those that answer."""
        assert self.process is not None
        (master,) = [child for child in psutil.Process(self.process.pid).children() if child.name() == "gunicorn"]
        workers: list[psutil.Process] = master.children()
        return workers

    def web_worker(self) -> psutil.Process:
        """The one process that answers."""
        (worker,) = self.web_workers()
        return worker

    def descriptors(self) -> int:
        """What they have open, clients included, but for SQLite: each thread that ever asked it keeps its connection."""
        count = 0
        for worker in self.web_workers():
            for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    count += "sqlite3" not in str(descriptor.readlink())
        return count

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Behind the back of the server, which has to notice. Values stand as `?`."""
        if self.database:
            with psycopg.connect(self.database, connect_timeout=10) as postgresql:
                cursor = postgresql.execute(statement.replace("?", "%s"), values)
                return cursor.fetchall() if cursor.description else []
        # As Django writes them, which compares them as text: without a fraction if there is none.
        stored = [value.replace(tzinfo=None).isoformat(" ") if isinstance(value, datetime) else value for value in values]
        with closing(sqlite3.connect(self.home / "strongroom.sqlite3", timeout=LIMIT)) as database, database:
            return database.execute(statement, stored).fetchall()

    def has_no_leftovers(self) -> bool:
        """Nothing is under way, and nothing waits to be cleared away but replaced contents in their hour of grace."""
        soon = datetime.now(UTC) + timedelta(minutes=1)
        return not self.sql(
            "SELECT object_key FROM files_upload UNION SELECT object_key FROM files_pendingdeletion WHERE due_at < ?", soon
        )

    def stored_objects(self) -> dict[str, int]:
        """Objects of files in the vault and their sizes, seen past whatever fails between it and the server."""
        if bucket := self.environment.get("S3_BUCKET"):
            pages = stores.ceph().client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            sizes = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}
        else:
            vault = self.home / "objects" / "vault"
            sizes = {str(path.relative_to(vault)): path.stat().st_size for path in vault.rglob("*") if path.is_file()}
        return {key: size for key, size in sizes.items() if not key.startswith(OWN)}

    def check_consistency(self) -> None:
        """What holds whatever happened: each file has its object, each object its row, and counts count what there is (INV-06,
        INV-18)."""
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
        """As if uploads had been silent for a quarter of an hour, and the leases of the clean-up and of purges had run out."""
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        self.sql("UPDATE files_upload SET heartbeat_at = ?", long_ago)
        for table in ("files_pendingdeletion", "purge_shard", "purge_destruction"):
            self.sql(f"UPDATE {table} SET lease_at = ? WHERE lease_at IS NOT NULL", long_ago)  # noqa: S608  our own tables

    def object_files(self) -> list[Path]:
        """Every file in its buckets, finished or not. A folder may go while they are looked for, which `rglob` does not stand."""
        found = [Path(folder, name) for folder, _, names in os.walk(self.home / "objects") for name in names]
        return [path for path in found if OWN not in f"{path}"]

    def request(self, method: str, path: str, *, token: str = "", body: Any = None) -> tuple[int, Any]:
        """Status and JSON of one call of the API."""
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
