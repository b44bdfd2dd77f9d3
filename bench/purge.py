"""The end of large collections, beside a bare loop of DeleteObjects on the same S3 server, on PostgreSQL.

    eval "$(.ci/ceph up)"
    .venv/bin/python -m bench.purge postgresql://root@127.0.0.1:5432 [--files 100000] [--rounds 5]

Makes and drops a database and buckets of its own. The bare loop is given the keys and does nothing but one DeleteObjects of
1,000 keys after the other, with boto3 as it comes. A worker is a process that calls `run_next_step` as the tick does: it
lists what there is, deletes every version of it, lists again, and keeps its lease. Each round takes both ways, with one process
or with two, on as many objects, so that a machine whose speed drifts is the same machine for all of them; what counts is the
median of the ratios. Exits with 1 if a collection is readable for longer than a second after its end began, if one worker
keeps less than 0.8 of the bare rate, or if the worker's memory grows with the number of files.
"""

import argparse
import http.client
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import psutil

from bench.access import own_database
from bench.streaming import peak_memory
from tests.stores import ALIASES, Endpoint, buckets


if TYPE_CHECKING:
    from files.models import Collection
    from tenants.models import User

SHARE = 10_000  # files for each worker in a round
BATCH = 1_000  # keys in one request, which is what S3 takes
BODY = os.urandom(1_024)  # bytes
PUTTERS = 8  # threads
UNREADABLE = 1.0  # seconds, at most
RATE = 0.8  # of the bare loop's, at least
GROWTH = 10.0  # MiB, at most


def endpoint() -> Endpoint:
    return Endpoint(os.environ["S3_TEST_ENDPOINT_URL"], os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])


# --- What there is ---


def put(keys: list[str]) -> None:
    """Unsigned, which the buckets allow: signing would be most of the time."""
    with ThreadPoolExecutor(PUTTERS) as threads:
        for _ in threads.map(put_one_by_one, (keys[n::PUTTERS] for n in range(PUTTERS))):
            pass


def put_one_by_one(keys: list[str]) -> None:
    connection = http.client.HTTPConnection(urlsplit(endpoint().url).netloc, timeout=60)
    for key in keys:
        connection.request("PUT", f"/{os.environ['S3_BUCKET']}/{key}", BODY)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()
    connection.close()


def fill(owner: "User", count: int) -> "Collection":
    """A collection that is due: one file that can be read, and as many rows and objects like it as make `count`."""
    from django.db import connection

    from files.models import Collection, StoredFile

    slug = request(owner, "post", "/api/v1/collections/", {"display_name": f"Bench {uuid4()}"}).json()["id"]
    assert request(owner, "put", content_of(slug), BODY, content_type="text/csv").status_code == 201
    collection = Collection.objects.get(slug=slug)
    (first,) = collection.files.values()
    ids = [uuid4() for _ in range(count - 1)]
    own = [
        {"id": None, "uuid": each, "object_id": each, "object_key": collection.object_key(each)}
        | dict.fromkeys(("filename", "name_key"), f"{each}.csv")
        for each in ids
    ]
    StoredFile.objects.bulk_create((StoredFile(**first | each) for each in own), batch_size=5_000)
    put([collection.object_key(each) for each in ids])
    due = datetime.now(UTC) - timedelta(minutes=1)
    Collection.objects.filter(pk=collection.pk).update(file_count=count, total_length=count * len(BODY), purge_at=due)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return collection


def request(user: "User", method: str, address: str, *body: Any, **how: Any) -> Any:
    from rest_framework.test import APIClient

    from tenants.auth import tokens

    client = APIClient(SERVER_NAME="localhost", HTTP_AUTHORIZATION=f"Bearer {tokens.mint(user)['access']}")
    return getattr(client, method)(address, *body, **how)


def content_of(slug: str) -> str:
    return f"/api/v1/collections/{slug}/content/first.csv"


# --- What is timed, in processes of their own ---


def set_up() -> None:
    """A worker in its second minute: imported, connected, with its first requests behind it."""
    import django

    django.setup()

    from purge.models import Destruction
    from vault.stores import ensure_buckets

    ensure_buckets()
    Destruction.objects.exists()
    endpoint().client.head_bucket(Bucket=os.environ["S3_BUCKET"])


def delete(keys: list[str]) -> None:
    """The bare loop."""
    client, vault = endpoint().client, os.environ["S3_BUCKET"]
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        answer = client.delete_objects(Bucket=vault, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True})
        assert not answer.get("Errors"), answer


def work(slug: str) -> None:
    """As ticks do, until the certificate is there."""
    from django.utils import timezone

    from purge import destruction as destroying
    from purge import jobs
    from purge.models import Destruction

    running = Destruction.objects.filter(slug=slug).exclude(status="done")
    while running.exists():
        if not destroying.run_next_step(now=timezone.now(), seconds=jobs.TICK_SECONDS):
            assert not running.filter(status="blocked").exists()
            time.sleep(0.02)  # the other worker has the last of it


@dataclass
class Worker:
    pool: ProcessPoolExecutor
    process: psutil.Process

    def memory(self) -> int:
        """Bytes (RSS: how much of its libraries others share changes as these come and go)."""
        rss: int = self.process.memory_info().rss
        return rss


@contextmanager
def worker() -> Iterator[Worker]:
    with ProcessPoolExecutor(1, get_context("spawn"), set_up) as pool:
        yield Worker(pool, psutil.Process(pool.submit(os.getpid).result()))


def seconds_of(*calls: tuple[Any, ...]) -> float:
    """Of all of them at once: (worker, what it does, with what)."""
    started = time.perf_counter()
    running = [worker.pool.submit(*call) for worker, *call in calls]
    for each in running:
        each.result()
    return time.perf_counter() - started


# --- The figures ---


def begin(owner: "User", collection: "Collection") -> tuple[float, float]:
    """Seconds until the key is destroyed, and until the API has refused to read a file."""
    from django.utils import timezone

    from purge import destruction as destroying

    assert request(owner, "get", content_of(collection.slug)).getvalue() == BODY
    started = time.perf_counter()
    assert destroying.start_destruction(collection, by=None, now=timezone.now())
    begun = time.perf_counter() - started
    assert request(owner, "get", content_of(collection.slug)).status_code == 404
    return begun, time.perf_counter() - started


def destroy(collection: "Collection", workers: list[Worker]) -> tuple[float, float]:
    """Seconds for the objects, until listings found none in any bucket, and for the rows behind them, until the certificate."""
    from purge.models import Destruction

    started = time.time()
    total = seconds_of(*((each, work, collection.slug) for each in workers))
    destruction = Destruction.objects.get(slug=collection.slug)
    shards = list(destruction.shards.values_list("erased", "verified_at"))
    assert sum(erased for erased, _ in shards) == destruction.file_count, shards
    assert "Versions" not in endpoint().client.list_object_versions(Bucket=os.environ["S3_BUCKET"], Prefix=collection.prefix)
    for_objects = max(at for _, at in shards if at).timestamp() - started
    return for_objects, total - for_objects


def compare(owner: "User", workers: list[Worker], share: int) -> float:
    """One round with so many files for each of the processes: the purge's rate as a part of the bare one's."""
    count = share * len(workers)
    keys = [f"bare/{uuid4()}" for _ in range(count)]
    put(keys)
    collection = fill(owner, count)
    begin(owner, collection)
    bare = seconds_of(*((each, delete, keys[n :: len(workers)]) for n, each in enumerate(workers)))
    objects, rows = destroy(collection, workers)
    rates = [count / seconds for seconds in (bare, objects, rows, objects + rows)]
    print(f"{len(workers):>7}{''.join(f'{rate:10,.0f}' for rate in rates)}{bare / objects:9.2f}", flush=True)
    return bare / objects


def run(owner: "User", first: Worker, second: Worker, *, files: int, rounds: int) -> bool:
    """Whether all of it is as it should be."""
    print("per second:\nworkers      bare   objects      rows      both    ratio")
    compare(owner, [first, second], BATCH)  # whatever is done once in a process is done now
    with peak_memory(first.memory) as small:
        one = statistics.median(compare(owner, [first], SHARE) for _ in range(rounds))
    two = statistics.median(compare(owner, [first, second], SHARE) for _ in range(-(-rounds // 2)))
    print(f"median ratio with one worker {one:.2f}, with two {two:.2f}; the first line does not count\n")

    collection = fill(owner, files)
    begun, refused = begin(owner, collection)
    print(f"{files:,} files: the key is gone after {begun:.2f} s, and a read was refused after {refused:.2f} s", flush=True)
    with peak_memory(first.memory) as large:
        objects, rows = destroy(collection, [first])
    print(f"one worker deleted the objects in {objects:.1f} s ({files / objects:,.0f}/s),")
    print(f"the rows in {rows:.1f} s ({files / rows:,.0f}/s), and all of it in {objects + rows:.1f} s")
    print(f"its memory grew by {small[0]:.1f} MiB in the rounds, and by {large[0]:.1f} MiB here")
    return refused < UNREADABLE and one >= RATE and large[0] < GROWTH


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("server", help="postgresql://user@host:port, without a database")
    options.add_argument("--files", type=int, default=100_000, help="of the large collection (100000)")
    options.add_argument(
        "--rounds", type=int, default=5, help="how often both ways are taken, and half as often with two workers (5)"
    )
    chosen = options.parse_args()
    assert urlsplit(chosen.server).scheme == "postgresql", "a PostgreSQL server, please"
    if "S3_TEST_ENDPOINT_URL" not in os.environ:
        options.error('no S3_TEST_ENDPOINT_URL: eval "$(.ci/ceph up)"')
    with buckets(endpoint(), len(ALIASES), ACL="public-read-write") as (vault, staging, release):
        os.environ |= endpoint().environment(vault)
        os.environ["DATABASE_TIMEOUT"] = "60"  # seconds: VACUUM may take its time
        os.environ |= {"S3_STAGING_BUCKET": staging, "S3_RELEASE_BUCKET": release}
        with own_database(chosen.server.rstrip("/"), "strongroom_bench_purge"):
            from tests.factories import make_member, make_tenant

            owner = make_member(make_tenant("acme"), "alice", "admin")
            with worker() as first, worker() as second:
                return int(not run(owner, first, second, files=chosen.files, rounds=chosen.rounds))


if __name__ == "__main__":
    sys.exit(main())
