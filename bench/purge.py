"""Compares the purge of large collections with a raw loop of DeleteObjects on the same S3 server, on PostgreSQL.

    eval "$(.ci/ceph up)"
    .venv/bin/python -m bench.purge postgresql://root@127.0.0.1:5432 [--files 100000] [--rounds 5]

Creates and drops its own database and buckets. The raw loop knows the keys and only calls DeleteObjects for 1,000 keys at a time,
with plain boto3. A worker is a process that calls `run_next_step` as the tick does: it lists the objects, deletes every version,
lists again, and renews its lease. Each round measures both on the same number of objects, with one process or with two, so that
both are measured at the same speed of the machine. The median of the ratios is meaningful. The exit code is 1 if a collection is
readable for more than a second after its purge started, if one worker reaches less than 0.8 of the raw rate, or if the memory of
the worker grows with the number of files.
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

from bench.access import temporary_database
from bench.streaming import peak_memory
from tests.stores import ALIASES, Endpoint, buckets


if TYPE_CHECKING:
    from files.models import Collection
    from tenants.models import User

FILES_PER_WORKER = 10_000  # in a round
BATCH = 1_000  # keys in one request; the limit of S3
BODY = os.urandom(1_024)
PUT_THREADS = 8
MAX_READABLE_SECONDS = 1.0
MIN_RATIO = 0.8  # rate of the purge relative to the raw loop
MAX_GROWTH = 10.0  # MiB


def endpoint() -> Endpoint:
    return Endpoint(os.environ["S3_TEST_ENDPOINT_URL"], os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])


# --- Test data ---


def put(keys: list[str]) -> None:
    """Stores an object for each key. The requests are unsigned, which the buckets allow: signing would take most of the time."""
    with ThreadPoolExecutor(PUT_THREADS) as threads:
        for _ in threads.map(put_one_by_one, (keys[n::PUT_THREADS] for n in range(PUT_THREADS))):
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
    """Creates a collection that is due for its purge, with `count` rows and objects. Only the first file is readable."""
    from django.db import connection

    from files.models import Collection, StoredFile

    slug = request(owner, "post", "/api/v1/collections/", {"display_name": f"Bench {uuid4()}"}).json()["id"]
    assert request(owner, "put", content_of(slug), BODY, content_type="text/csv").status_code == 201
    collection = Collection.objects.get(slug=slug)
    (first,) = collection.files.values()
    ids = [uuid4() for _ in range(count - 1)]
    own_values = [
        {"id": None, "uuid": each, "object_id": each, "object_key": collection.object_key(each)}
        | dict.fromkeys(("filename", "name_key"), f"{each}.csv")
        for each in ids
    ]
    StoredFile.objects.bulk_create((StoredFile(**first | each) for each in own_values), batch_size=5_000)
    put([collection.object_key(each) for each in ids])
    due = datetime.now(UTC) - timedelta(minutes=1)
    Collection.objects.filter(pk=collection.pk).update(file_count=count, total_length=count * len(BODY), purge_at=due)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return collection


def request(user: "User", method: str, address: str, *body: Any, **options: Any) -> Any:
    from rest_framework.test import APIClient

    from tenants.auth import tokens

    client = APIClient(SERVER_NAME="localhost", HTTP_AUTHORIZATION=f"Bearer {tokens.mint(user)['access']}")
    return getattr(client, method)(address, *body, **options)


def content_of(slug: str) -> str:
    return f"/api/v1/collections/{slug}/content/first.csv"


# --- Measured functions, which run in separate processes ---


def warm_up() -> None:
    """Imports the code, connects to the database and makes the first requests, so that these do not affect the measurements."""
    import django

    django.setup()

    from purge.models import Destruction
    from vault.stores import ensure_buckets

    ensure_buckets()
    Destruction.objects.exists()
    endpoint().client.head_bucket(Bucket=os.environ["S3_BUCKET"])


def delete_raw(keys: list[str]) -> None:
    """The raw loop that is compared with the purge."""
    client, vault = endpoint().client, os.environ["S3_BUCKET"]
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        response = client.delete_objects(Bucket=vault, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True})
        assert not response.get("Errors"), response


def purge(slug: str) -> None:
    """Works like the tick until the collection has its certificate."""
    from django.utils import timezone

    from purge import destruction as destroying
    from purge import jobs
    from purge.models import Destruction

    running = Destruction.objects.filter(slug=slug).exclude(status="done")
    while running.exists():
        if not destroying.run_next_step(now=timezone.now(), seconds=jobs.TICK_SECONDS):
            assert not running.filter(status="blocked").exists()
            time.sleep(0.02)  # the other worker has the rest


@dataclass
class Worker:
    pool: ProcessPoolExecutor
    process: psutil.Process

    def memory(self) -> int:
        """Resident memory in bytes. Measures of unshared memory change when other processes start and end."""
        rss: int = self.process.memory_info().rss
        return rss


@contextmanager
def worker() -> Iterator[Worker]:
    with ProcessPoolExecutor(1, get_context("spawn"), warm_up) as pool:
        yield Worker(pool, psutil.Process(pool.submit(os.getpid).result()))


def seconds_of(*calls: tuple[Any, ...]) -> float:
    """Seconds that the calls take in parallel. Each call is (worker, function, arguments...)."""
    started = time.perf_counter()
    running = [worker.pool.submit(*call) for worker, *call in calls]
    for each in running:
        each.result()
    return time.perf_counter() - started


# --- Comparison ---


def start_purge(owner: "User", collection: "Collection") -> tuple[float, float]:
    """Starts a purge. Returns the seconds until the key is destroyed, and until the API has refused to read a file."""
    from django.utils import timezone

    from purge import destruction as destroying

    assert request(owner, "get", content_of(collection.slug)).getvalue() == BODY
    started = time.perf_counter()
    assert destroying.start_destruction(collection, by=None, now=timezone.now())
    key_destroyed = time.perf_counter() - started
    assert request(owner, "get", content_of(collection.slug)).status_code == 404
    return key_destroyed, time.perf_counter() - started


def finish_purge(collection: "Collection", workers: list[Worker]) -> tuple[float, float]:
    """Returns the seconds until no bucket has an object of the collection, and those from then until the certificate exists."""
    from purge.models import Destruction

    started = time.time()
    total = seconds_of(*((each, purge, collection.slug) for each in workers))
    destruction = Destruction.objects.get(slug=collection.slug)
    shards = list(destruction.shards.values_list("erased", "verified_at"))
    assert sum(erased for erased, _ in shards) == destruction.file_count, shards
    assert "Versions" not in endpoint().client.list_object_versions(Bucket=os.environ["S3_BUCKET"], Prefix=collection.prefix)
    for_objects = max(at for _, at in shards if at).timestamp() - started
    return for_objects, total - for_objects


def compare(owner: "User", workers: list[Worker], files_per_worker: int) -> float:
    """Runs one round. Returns the rate of the purge relative to the raw loop."""
    count = files_per_worker * len(workers)
    keys = [f"raw/{uuid4()}" for _ in range(count)]
    put(keys)
    collection = fill(owner, count)
    start_purge(owner, collection)
    raw = seconds_of(*((each, delete_raw, keys[n :: len(workers)]) for n, each in enumerate(workers)))
    objects, rows = finish_purge(collection, workers)
    rates = [count / seconds for seconds in (raw, objects, rows, objects + rows)]
    print(f"{len(workers):>7}{''.join(f'{rate:10,.0f}' for rate in rates)}{raw / objects:9.2f}", flush=True)
    return raw / objects


def run(owner: "User", first: Worker, second: Worker, *, files: int, rounds: int) -> bool:
    """Runs and prints all measurements. Returns whether they are within the limits."""
    print("per second:\nworkers       raw   objects      rows      both    ratio")
    compare(owner, [first, second], BATCH)
    with peak_memory(first.memory) as small:
        one = statistics.median(compare(owner, [first], FILES_PER_WORKER) for _ in range(rounds))
    two = statistics.median(compare(owner, [first, second], FILES_PER_WORKER) for _ in range(-(-rounds // 2)))
    print(f"median ratio with one worker {one:.2f}, with two {two:.2f}; the first line is from the warm-up round\n")

    collection = fill(owner, files)
    key_destroyed, refused = start_purge(owner, collection)
    print(f"{files:,} files: key destroyed after {key_destroyed:.2f} s, first read refused after {refused:.2f} s", flush=True)
    with peak_memory(first.memory) as large:
        objects, rows = finish_purge(collection, [first])
    print(f"one worker deleted the objects in {objects:.1f} s ({files / objects:,.0f}/s)")
    print(f"and the rows in {rows:.1f} s ({files / rows:,.0f}/s), {objects + rows:.1f} s in total")
    print(f"its memory grew by {small[0]:.1f} MiB during the rounds, and by {large[0]:.1f} MiB during this purge")
    return refused < MAX_READABLE_SECONDS and one >= MIN_RATIO and large[0] < MAX_GROWTH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="postgresql://user@host:port, without a database")
    parser.add_argument("--files", type=int, default=100_000, help="files in the large collection (100000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds with one worker; half as many with two workers (5)")
    options = parser.parse_args()
    if urlsplit(options.server).scheme != "postgresql":
        parser.error("the server must be a postgresql:// URL")
    if "S3_TEST_ENDPOINT_URL" not in os.environ:
        parser.error('S3_TEST_ENDPOINT_URL is not set; run eval "$(.ci/ceph up)" first')
    with buckets(endpoint(), len(ALIASES), ACL="public-read-write") as (vault, staging, release):
        os.environ |= endpoint().environment(vault)
        os.environ["DATABASE_TIMEOUT"] = "60"  # seconds; VACUUM can be slow
        os.environ |= {"S3_STAGING_BUCKET": staging, "S3_RELEASE_BUCKET": release}
        with temporary_database(options.server.rstrip("/"), "strongroom_bench_purge"):
            from tests.factories import make_member, make_tenant

            owner = make_member(make_tenant("acme"), "alice", "admin")
            with worker() as first, worker() as second:
                return int(not run(owner, first, second, files=options.files, rounds=options.rounds))


if __name__ == "__main__":
    sys.exit(main())
