"""Measures the cost of access checks: lists and details of 100,000 files in 1,000 collections with 20,000 grants, on PostgreSQL.

    .venv/bin/python -m bench.access postgresql://root@127.0.0.1:5432 [--rounds 3]      creates and drops its own database

Each request passes through the whole application in this process, as in a web worker. For each kind of request and each user, the
output has the number of queries, the median and the 95th percentile over all pages and rounds, and the medians of the first and
the last page. `machine` is the time of a million additions in Python, which shows when a shared machine was slow. The exit code
is 1 if a 95th percentile is greater than 50 ms or if the number of queries depends on the page.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import count
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg


COLLECTIONS, FILES, GRANTS, PEOPLE = 1_000, 100_000, 20_000, 500
DETAIL_ROUNDS = 20  # requests for a detail per round of a list
LARGEST_COLLECTION = 10_000  # files in the first collection
MAX_P95 = 0.050  # seconds


@contextmanager
def temporary_database(server: str, name: str) -> Iterator[None]:
    """Creates and migrates a database, and configures Django in this process to use it. Drops it afterwards."""
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
        os.environ["DATABASE_URL"] = f"{server}/{name}"
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        os.environ.setdefault("LOG_LEVEL", "WARNING")  # INFO has a line for each request
        try:
            import django
            from django.core.management import call_command

            django.setup()
            call_command("migrate", verbosity=0)
            yield
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fill(now: datetime) -> dict[str, Any]:
    """Creates all rows. Returns the users whose requests are measured, by their descriptions in the output."""
    from django.db import connection

    from files.models import Collection, Grant, Level, StoredFile
    from tenants.models import Membership, Tenant, User
    from vault.models import Key

    chance = random.Random(1)  # noqa: S311  the same rows in every run
    acme = Tenant.objects.create(slug="acme", name="Acme", created_at=now, allow_external_sharing=True)
    globex = Tenant.objects.create(slug="globex", name="Globex", created_at=now)
    User.objects.bulk_create(User(username=f"person-{n}", email=f"person-{n}@example.org") for n in range(PEOPLE))
    people = list(User.objects.order_by("id"))
    admin, auditor, outsider, *members = people

    def membership_of(user: User, tenant: Tenant, role: str) -> Membership:
        return Membership(user=user, tenant=tenant, roles=[role], created_at=now)

    Membership.objects.bulk_create(
        [membership_of(admin, acme, "admin"), membership_of(auditor, acme, "auditor"), membership_of(outsider, globex, "member")]
        + [membership_of(user, acme, "member") for user in members]
    )
    memberships = {each.user_id: each for each in Membership.objects.all()}
    keys = [
        Key(purpose="collection", owner=f"{acme.pk}/{n}", kek_id="bench", wrapped=b"", created_at=now) for n in range(COLLECTIONS)
    ]
    Key.objects.bulk_create(keys)
    collections = [
        Collection(
            slug=f"collection-{n}", tenant=acme, display_name=f"Collection {n}", cipher="AES-GCM", key=key, created_by=admin,
            created_at=now - timedelta(minutes=n),
        )
        for n, key in enumerate(keys)
    ]  # fmt: skip
    Collection.objects.bulk_create(collections)
    homes = [collections[0]] * LARGEST_COLLECTION + chance.choices(collections[1:], k=FILES - LARGEST_COLLECTION)
    files = [
        StoredFile(
            collection=home, filename=f"file-{n}.csv", name_key=f"file-{n}.csv", content_type="text/csv", length=n,
            cipher="AES-GCM", sha256=sha256(str(n).encode()).hexdigest(), created_at=now - timedelta(seconds=n),
            updated_at=now, created_by=admin, updated_by=admin, segment_size=131072, store="vault", object_id=uuid4(),
            object_key=f"bench/{n}", object_size=n + 56, object_etag="bench",
            header=bytes(40), key_salt=bytes(32), key_commitment=bytes(32),
        )
        for n, home in enumerate(homes)
    ]  # fmt: skip
    StoredFile.objects.bulk_create(files, batch_size=5_000)

    def grant(collection: Collection, user: User | None, level: Level, file: StoredFile | None = None) -> Grant:
        membership = memberships[user.pk] if user in members else None
        age = timedelta(seconds=next(ages))
        return Grant(
            tenant=acme, collection=collection, file=file, user=user, membership=membership, level=level, created_at=now - age
        )

    ages = count()
    # One member has a grant on each collection. All members have grants on half of the collections. The outsider has 50 grants.
    granted_all = members[0]
    grants = [grant(collection, granted_all, Level.VIEWER) for collection in collections]
    grants += [grant(collection, None, Level.VIEWER) for collection in collections[::2]]
    grants += [grant(collection, outsider, Level.VIEWER) for collection in collections[:50]]
    single = {(file.pk, chance.choice(members[1:])) for file in chance.sample(files, GRANTS - len(grants))}
    by_pk = {file.pk: file for file in files}
    grants += [grant(by_pk[pk].collection, user, Level.EDITOR, by_pk[pk]) for pk, user in single]
    Grant.objects.bulk_create(grants, batch_size=5_000)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")  # otherwise the first requests would wait for the disk
    return {
        "admin": admin,
        "auditor": auditor,
        "member with all": granted_all,
        "member with few": members[1],
        "outsider": outsider,
    }


class Measurements:
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.first: list[float] = []
        self.last: list[float] = []
        self.queries: set[int] = set()
        self.machine: list[float] = []


def time_additions() -> float:
    """Seconds that a million additions take. Shows how fast the machine is at this moment."""
    started, total = time.perf_counter(), 0
    for number in range(1_000_000):
        total += number
    return time.perf_counter() - started


def request_pages(client: Any, address: str, measured: Measurements, *, is_counting: bool) -> None:
    """Requests all pages. Counts queries instead of measuring if `is_counting`, because counting takes time."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    page, seconds = address, []
    while page:
        with CaptureQueriesContext(connection) if is_counting else nullcontext(()) as queries:
            started = time.perf_counter()
            response = client.get(page)
            seconds.append(time.perf_counter() - started)
        assert response.status_code == 200, (page, response.content)
        page = response.json().get("next")
        if is_counting:
            measured.queries.add(len(queries))
    measured.machine.append(time_additions())
    if is_counting:
        return
    measured.seconds += seconds
    measured.first.append(seconds[0])
    measured.last.append(seconds[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="postgresql://user@host:port, without a database")
    parser.add_argument("--rounds", type=int, default=3, help="rounds through each list (3)")
    options = parser.parse_args()
    if urlsplit(options.server).scheme != "postgresql":
        parser.error("the server must be a postgresql:// URL")
    with temporary_database(options.server.rstrip("/"), "strongroom_bench_access"):
        from rest_framework.test import APIClient

        from tenants.auth import tokens

        now = datetime.now(UTC)
        users = fill(now)
        has_failed = False
        print(f"{'':34}{'queries':>8}{'p50':>9}{'p95':>9}{'first':>9}{'last':>9}{'machine':>9}   ms")
        for name, user in users.items():
            largest = "/api/v1/collections/collection-0/"
            kinds = {"collections": "/api/v1/collections/", "files of 10,000": f"{largest}files/", "collection": largest}
            if name in {"admin", "auditor"}:
                kinds |= {"grants of the tenant": "/api/v1/tenants/acme/grants/", "grants": f"{largest}grants/"}
            kinds["file"] = f"{largest}files/file-5000.csv/"
            for kind, address in kinds.items():
                measured = Measurements()
                rounds = options.rounds * (DETAIL_ROUNDS if kind in {"collection", "file"} else 1)
                for number in range(rounds + 1):
                    client = APIClient(SERVER_NAME="localhost", HTTP_AUTHORIZATION=f"Bearer {tokens.mint(user)['access']}")
                    request_pages(client, address, measured, is_counting=number == 0)
                p95 = sorted(measured.seconds)[int(0.95 * len(measured.seconds))]
                figures = [measured.seconds, measured.first, measured.last, measured.machine]
                p50, first, last, machine = (statistics.median(each) for each in figures)
                shown = "".join(f"{figure * 1000:9.1f}" for figure in (p50, p95, first, last, machine))
                print(f"{name + ': ' + kind:34}{'/'.join(map(str, sorted(measured.queries))):>8}{shown}", flush=True)
                has_failed |= p95 > MAX_P95 or len(measured.queries) > 1
        return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
