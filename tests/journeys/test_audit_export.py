"""A long audit trail leaves a real server: flat in memory, and visibly cut when something fails (F-62, INV-16, T-7)."""

import csv
import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.child_process import killed_with_parent
from tests.live.server import ROOT, Server
from tests.live.waiting import LIMIT, wait_for
from tests.needs import mark_dependents


MIB = 1024 * 1024
PARTIAL_FILE, RECEIVE_ERROR = 18, 56  # curl: the last chunk is missing; the connection was reset


@dataclass(frozen=True)
class Trail:
    events: int
    size: int  # bytes, as a spreadsheet, at least


@pytest.fixture(
    scope="module",
    params=[Trail(40_000, 26 * MIB), pytest.param(Trail(60_000, 40 * MIB), marks=pytest.mark.long)],
    ids=lambda trail: trail.events,
)
def trail(request: pytest.FixtureRequest) -> Trail:
    found: Trail = request.param
    return found


@pytest.fixture(scope="module")
@mark_dependents(pytest.mark.server, pytest.mark.needs("curl"))
def server(tmp_path_factory: pytest.TempPathFactory, first_home: Path, trail: Trail) -> Iterator[Server]:
    """Of its own: its demo tenant has a long trail, which no chain holds together."""
    server = Server(tmp_path_factory.mktemp("export") / "home")
    server.copy_home_from(first_home)
    try:
        fill_trail(server.start(), trail.events)
        yield server
        assert server.stop() == 0
    finally:
        server.kill()


def fill_trail(server: Server, events: int) -> None:
    ((tenant,),) = server.sql("SELECT id FROM tenants_tenant WHERE slug = 'demo'")
    chain = str(uuid.UUID(tenant))
    ((seq,),) = server.sql("SELECT seq FROM tenants_audithead WHERE chain = ?", chain)
    server.sql(
        """
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
        INSERT INTO tenants_auditevent (id, chain, seq, at, action, actor_id, actor, tenant_id, target_kind, target_id,
            request_id, body, prev_hash, hash)
        SELECT lower(hex(randomblob(16))), ?, ? + n, '2026-11-21 12:00:00', 'file.download', '3', 'member', ?, 'storedfile', '7',
            '', ?, ?, ? FROM numbers
        """,
        *(events, chain, seq, chain, json.dumps({"facts": {"padding": "p" * 500}}), "0" * 64, "0" * 64),
    )
    server.sql("UPDATE tenants_audithead SET seq = seq + ? WHERE chain = ?", events, chain)


@pytest.fixture
def auditor(server: Server, tmp_path: Path) -> Iterator[tuple[Server, list[str]]]:
    """The server, and the beginning of its auditor's command."""
    bearer = tmp_path / "bearer"
    bearer.write_text(f'header = "Authorization: Bearer {server.token("auditor")}"\n')
    yield server, ["curl", "-sS", "-K", str(bearer), "--max-time", str(LIMIT), f"{server.url}/api/v1/tenants/demo/audit.csv"]
    give_role(server, "auditor")


def give_role(server: Server, role: str) -> None:
    user = "SELECT id FROM tenants_user WHERE username = 'auditor'"
    server.sql(f"UPDATE tenants_membership SET roles = ? WHERE user_id = ({user})", json.dumps([role]))  # noqa: S608  a constant


def cuts(server: Server) -> int:
    """Exports that its log says were cut."""
    return sum("audit.csv" in line and '"cut": true' in line for line in server.log.splitlines())


def test_long_trail_is_exported_whole_in_flat_memory(auditor: tuple[Server, list[str]], trail: Trail, tmp_path: Path) -> None:
    server, curl = auditor
    before_any = cuts(server)
    subprocess.run([*curl, "-o", "/dev/null"], check=True)  # whatever the first one makes
    before = server.memory()
    subprocess.run([*curl, "-OJ"], cwd=tmp_path, check=True)
    assert server.memory() < before + 20 * MIB
    (path,) = tmp_path.glob("demo-audit-*.csv")
    assert path.stat().st_size > trail.size
    with path.open(encoding="utf-8-sig", newline="") as file:
        seqs = [int(row["seq"]) for row in csv.DictReader(file, strict=True)]
    ((last,),) = server.sql("SELECT max(seq) FROM tenants_auditevent WHERE action = 'audit.export'")
    assert seqs == list(range(1, last))
    assert cuts(server) == before_any


@pytest.mark.parametrize(("version", "status"), [("--http1.1", PARTIAL_FILE), ("--http1.0", RECEIVE_ERROR)])
def test_export_whose_reader_loses_the_role_is_visibly_cut(
    auditor: tuple[Server, list[str]], trail: Trail, tmp_path: Path, version: str, status: int
) -> None:
    """Nobody takes half of the rows for all of them, not even without chunks, where the end of the connection is the end."""
    server, curl = auditor
    target, before = tmp_path / "audit.csv", cuts(server)
    command = killed_with_parent(*curl, version, "--limit-rate", "2M", "-o", target)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        wait_for(lambda: target.exists() and target.stat().st_size > MIB)
        give_role(server, "member")
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == status, said
    assert target.stat().st_size < trail.size
    wait_for(lambda: cuts(server) > before)
