"""A package of many files, beside a raw loop that reads and writes as much on the same S3 server, on PostgreSQL.

    CEPH_BYTES=12884901888 .ci/ceph up > ceph.env && . ./ceph.env
    .venv/bin/python -m bench.egress postgresql://root@127.0.0.1:5432 [--files 2000] [--mib 2048] [--rounds 1]

Makes and drops a database and buckets of its own. The raw loop is given the keys, gets one staged object after the other and
writes the same bytes in parts of 8 MiB to the release bucket, with boto3 as it comes: no cipher, no digest, no zip. The worker
verifies and decrypts each, takes the SHA-256 of each and of the zip, packs, encrypts and writes. Each round takes the raw way,
the package and the raw way again, so that a machine whose speed drifts is the same for both. Staging is timed beside a bare loop
of CopyObject on the same objects. The worker may write to no file at all (RLIMIT_FSIZE is 0), so that nothing reaches a disk.
Exits with 1 if its memory grows by more than 96 MiB, or the package is not what was asked for.
"""

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from bench.access import own_database
from bench.purge import endpoint, request, worker
from bench.streaming import cpu_seconds, peak_memory
from tests.stores import ALIASES, buckets


if TYPE_CHECKING:
    from bench.purge import Worker
    from tenants.models import User

MIB = 1024**2
GIB = 1024**3
PART = 8 * MIB
GROWTH = 96.0  # MiB, at most
REASON = "It is what the protocol allows."


# --- What there is ---


def fill(owner: "User", files: int, mib: int) -> str:
    """A collection of so many files of one size; its id."""
    content = os.urandom(mib * MIB // files)
    slug = str(request(owner, "post", "/api/v1/collections/", {"display_name": f"Bench {uuid4()}"}).json()["id"])
    for number in range(files):
        address = f"/api/v1/collections/{slug}/content/{number:05}.csv"
        assert request(owner, "put", address, content, content_type="text/csv").status_code == 201
    return slug


def submit(owner: "User", slug: str) -> str:
    answer = request(owner, "post", "/api/v1/egress/requests/", {"collection": slug, "justification": REASON}, format="json")
    assert answer.status_code == 201, answer.content
    return str(answer.json()["id"])


def approve(pk: str, *reviewers: "User") -> None:
    for reviewer in reviewers:
        address = f"/api/v1/egress/requests/{pk}/decisions/"
        answer = request(reviewer, "post", address, {"verdict": "approve", "reason": REASON}, format="json")
        assert answer.status_code == 201, answer.content


# --- What is timed, in processes of their own ---


def write_no_file() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def copy(keys: list[str], release: str) -> None:
    """The bare loop beside staging."""
    client, vault = endpoint().client, os.environ["S3_BUCKET"]
    for number, key in enumerate(keys):
        client.copy_object(Bucket=release, Key=f"bare/{number}", CopySource={"Bucket": vault, "Key": key})


def pump(keys: list[str], length: int) -> None:
    """The raw loop beside packaging: so many bytes into one object, as long as those of these objects last."""
    client, staging, release = endpoint().client, os.environ["S3_STAGING_BUCKET"], os.environ["S3_RELEASE_BUCKET"]
    place: Any = {"Bucket": release, "Key": "raw"}
    place["UploadId"] = client.create_multipart_upload(**place)["UploadId"]
    parts: list[Any] = []
    part = bytearray()

    def send() -> None:
        answer = client.upload_part(**place, PartNumber=len(parts) + 1, Body=bytes(part))
        parts.append({"PartNumber": len(parts) + 1, "ETag": answer["ETag"]})
        part.clear()

    for key in keys:
        body = client.get_object(Bucket=staging, Key=key)["Body"]
        while piece := body.read(MIB):
            part += piece
            length -= len(piece)
            if len(part) >= PART:
                send()
    part += bytes(max(0, length))
    send()
    client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})


def stage() -> None:
    from django.utils import timezone

    from egress import jobs

    while jobs.process_copies(now=timezone.now(), until=float("inf")):
        pass


def build() -> None:
    from django.utils import timezone

    from egress import jobs

    assert jobs.build_package(now=timezone.now())


@dataclass
class Sample:
    seconds: float
    cpu: float  # seconds, of the worker
    growth: float  # MiB


def timed(worker: "Worker", *call: Any) -> Sample:
    before = cpu_seconds([worker.process])
    started = time.perf_counter()
    with peak_memory(worker.memory) as growth:
        worker.pool.submit(*call).result()
    return Sample(time.perf_counter() - started, cpu_seconds([worker.process]) - before, growth[0])


# --- The figures ---


def empty(bucket: str, prefix: str) -> None:
    client = endpoint().client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=item["Key"])


def round_of(people: dict[str, "User"], egress: "Worker", bare: "Worker", *, files: int, mib: int) -> tuple[Sample, float]:
    """One package: what building it took, and its rate as a part of the raw one's."""
    from egress.models import EgressRequest, StagedFile
    from files.models import StoredFile

    release = os.environ["S3_RELEASE_BUCKET"]
    slug = fill(people["bob"], files, mib)
    pk = submit(people["bob"], slug)
    vault = list(StoredFile.objects.filter(collection__slug=slug).values_list("object_key", flat=True))
    plain = timed(bare, copy, vault, release)
    empty(release, "bare/")
    staged = timed(egress, stage)
    print(f"staging: {files / staged.seconds:,.0f} copies/s, CopyObject alone {files / plain.seconds:,.0f}/s, "
          f"ratio {plain.seconds / staged.seconds:.2f}, memory +{staged.growth:.1f} MiB", flush=True)  # fmt: skip
    approve(pk, people["grace"], people["ruth"])
    keys = list(StagedFile.objects.filter(request__pk=pk).values_list("object_key", flat=True))
    raw = [timed(bare, pump, keys, mib * MIB)]
    empty(release, "raw")
    built = timed(egress, build)
    raw.append(timed(bare, pump, keys, mib * MIB))
    empty(release, "raw")
    made = EgressRequest.objects.get(pk=pk)
    assert made.status == "released", made.problem
    gib = (made.package_length or 0) / GIB
    beside = statistics.mean(each.seconds for each in raw)
    for name, seconds, cpu in (
        ("package", built.seconds, built.cpu),
        ("raw loop", beside, statistics.mean(each.cpu for each in raw)),
    ):
        print(f"{name:>9}: {gib * 1024 / seconds:7,.0f} MiB/s, {cpu / gib:5.2f} CPU-s/GiB")
    print(
        f"    ratio: {beside / built.seconds:.2f} of {gib:.2f} GiB in {files} files; memory +{built.growth:.1f} MiB", flush=True
    )
    return built, beside / built.seconds


@contextmanager
def without_files() -> Iterator["Worker"]:
    """A worker that can write to no file."""
    with worker() as made:
        made.pool.submit(write_no_file).result()
        yield made


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("server", help="postgresql://user@host:port, without a database")
    options.add_argument("--files", type=int, default=2_000)
    options.add_argument("--mib", type=int, default=2_048, help="of all of them together (2048)")
    options.add_argument("--rounds", type=int, default=1)
    chosen = options.parse_args()
    assert urlsplit(chosen.server).scheme == "postgresql", "a PostgreSQL server, please"
    if "S3_TEST_ENDPOINT_URL" not in os.environ:
        options.error('no S3_TEST_ENDPOINT_URL: eval "$(.ci/ceph up)"')
    with buckets(endpoint(), len(ALIASES)) as (vault, staging, release):
        os.environ |= endpoint().environment(vault)
        os.environ |= {"S3_STAGING_BUCKET": staging, "S3_RELEASE_BUCKET": release}
        with own_database(chosen.server.rstrip("/"), "strongroom_bench_egress"):
            from tests.factories import make_member, make_tenant

            acme = make_tenant("acme")
            roles = {"bob": "member", "grace": "information_governance", "ruth": "research_it"}
            people = {name: make_member(acme, name, role) for name, role in roles.items()}
            with without_files() as egress, without_files() as bare:
                round_of(people, egress, bare, files=50, mib=64)  # whatever is done once in a process is done now
                print("the lines above do not count\n")
                rounds = [round_of(people, egress, bare, files=chosen.files, mib=chosen.mib) for _ in range(chosen.rounds)]
            print(f"median ratio {statistics.median(ratio for _, ratio in rounds):.2f}")
            return int(max(built.growth for built, _ in rounds) > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
