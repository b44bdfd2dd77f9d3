"""Compares staging and packaging of many files with raw loops over the same S3 server, on PostgreSQL.

    CEPH_BYTES=12884901888 .ci/ceph up > ceph.env && . ./ceph.env
    .venv/bin/python -m bench.egress postgresql://root@127.0.0.1:5432 [--files 2000] [--mib 2048] [--rounds 1]

Creates and drops its own database and buckets. The raw loop reads the staged objects and writes the same number of bytes to the
release bucket in parts of 8 MiB. It uses plain boto3, without encryption, digests or zip. The worker verifies and decrypts each
file, computes the SHA-256 of each file and of the zip, packs, encrypts and writes. Each round runs the raw loop, the packaging
and the raw loop again, so that both are measured at the same speed of the machine. Staging is compared with a raw loop of
CopyObject. The worker cannot write to any file (RLIMIT_FSIZE is 0), which proves that nothing reaches a disk. The exit code is 1
if its memory grows by more than 96 MiB, or if no package is released.
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

from bench.access import temporary_database
from bench.purge import endpoint, request, worker
from bench.streaming import cpu_seconds, peak_memory
from tests.stores import ALIASES, buckets


if TYPE_CHECKING:
    from bench.purge import Worker
    from tenants.models import User

MIB = 1024**2
GIB = 1024**3
PART = 8 * MIB
MAX_GROWTH = 96.0  # MiB
REASON = "The study protocol allows this release."


# --- Test data ---


def fill(owner: "User", files: int, mib: int) -> str:
    """Creates a collection with so many files of the same size and `mib` MiB in total. Returns its id."""
    content = os.urandom(mib * MIB // files)
    slug = str(request(owner, "post", "/api/v1/collections/", {"display_name": f"Bench {uuid4()}"}).json()["id"])
    for number in range(files):
        address = f"/api/v1/collections/{slug}/content/{number:05}.csv"
        assert request(owner, "put", address, content, content_type="text/csv").status_code == 201
    return slug


def submit(owner: "User", slug: str) -> str:
    body = {"collection": slug, "justification": REASON}
    response = request(owner, "post", "/api/v1/egress/requests/", body, format="json")
    assert response.status_code == 201, response.content
    return str(response.json()["id"])


def approve(pk: str, *reviewers: "User") -> None:
    for reviewer in reviewers:
        address = f"/api/v1/egress/requests/{pk}/decisions/"
        response = request(reviewer, "post", address, {"verdict": "approve", "reason": REASON}, format="json")
        assert response.status_code == 201, response.content


# --- Measured functions, which run in separate processes ---


def forbid_file_writes() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def copy_raw(keys: list[str], release: str) -> None:
    """The raw loop that is compared with staging."""
    client, vault = endpoint().client, os.environ["S3_BUCKET"]
    for number, key in enumerate(keys):
        client.copy_object(Bucket=release, Key=f"raw/{number}", CopySource={"Bucket": vault, "Key": key})


def package_raw(keys: list[str], length: int) -> None:
    """The raw loop that is compared with packaging. Copies the objects to one object, which it pads to `length` bytes."""
    client, staging, release = endpoint().client, os.environ["S3_STAGING_BUCKET"], os.environ["S3_RELEASE_BUCKET"]
    upload: Any = {"Bucket": release, "Key": "raw"}
    upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
    parts: list[Any] = []
    part = bytearray()

    def send() -> None:
        response = client.upload_part(**upload, PartNumber=len(parts) + 1, Body=bytes(part))
        parts.append({"PartNumber": len(parts) + 1, "ETag": response["ETag"]})
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
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})


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
    cpu: float  # CPU seconds of the worker
    growth: float  # MiB


def measure(worker: "Worker", *call: Any) -> Sample:
    before = cpu_seconds([worker.process])
    started = time.perf_counter()
    with peak_memory(worker.memory) as growth:
        worker.pool.submit(*call).result()
    return Sample(time.perf_counter() - started, cpu_seconds([worker.process]) - before, growth[0])


# --- Comparison ---


def delete_objects(bucket: str, prefix: str) -> None:
    client = endpoint().client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=item["Key"])


def run_round(users: dict[str, "User"], egress: "Worker", raw: "Worker", *, files: int, mib: int) -> tuple[Sample, float]:
    """Releases one package. Returns the sample of building it, and its rate relative to the raw loop."""
    from egress.models import EgressRequest, StagedFile
    from files.models import StoredFile

    release = os.environ["S3_RELEASE_BUCKET"]
    slug = fill(users["bob"], files, mib)
    pk = submit(users["bob"], slug)
    vault = list(StoredFile.objects.filter(collection__slug=slug).values_list("object_key", flat=True))
    copied = measure(raw, copy_raw, vault, release)
    delete_objects(release, "raw/")
    staged = measure(egress, stage)
    print(f"staging: {files / staged.seconds:,.0f} copies/s, CopyObject alone {files / copied.seconds:,.0f}/s, "
          f"ratio {copied.seconds / staged.seconds:.2f}, memory +{staged.growth:.1f} MiB", flush=True)  # fmt: skip
    approve(pk, users["grace"], users["ruth"])
    keys = list(StagedFile.objects.filter(request__pk=pk).values_list("object_key", flat=True))
    raw_samples = [measure(raw, package_raw, keys, mib * MIB)]
    delete_objects(release, "raw")
    built = measure(egress, build)
    raw_samples.append(measure(raw, package_raw, keys, mib * MIB))
    delete_objects(release, "raw")
    released = EgressRequest.objects.get(pk=pk)
    assert released.status == "released", released.problem
    gib = (released.package_length or 0) / GIB
    raw_seconds = statistics.mean(each.seconds for each in raw_samples)
    for name, seconds, cpu in (
        ("package", built.seconds, built.cpu),
        ("raw loop", raw_seconds, statistics.mean(each.cpu for each in raw_samples)),
    ):
        print(f"{name:>9}: {gib * 1024 / seconds:7,.0f} MiB/s, {cpu / gib:5.2f} CPU-s/GiB")
    ratio = raw_seconds / built.seconds
    print(f"    ratio: {ratio:.2f} for {gib:.2f} GiB in {files} files; memory +{built.growth:.1f} MiB", flush=True)
    return built, ratio


@contextmanager
def diskless_worker() -> Iterator["Worker"]:
    """A worker that cannot write to files."""
    with worker() as started:
        started.pool.submit(forbid_file_writes).result()
        yield started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="postgresql://user@host:port, without a database")
    parser.add_argument("--files", type=int, default=2_000, help="number of files in a package (2000)")
    parser.add_argument("--mib", type=int, default=2_048, help="total size of these files in MiB (2048)")
    parser.add_argument("--rounds", type=int, default=1, help="number of packages (1)")
    options = parser.parse_args()
    if urlsplit(options.server).scheme != "postgresql":
        parser.error("the server must be a postgresql:// URL")
    if "S3_TEST_ENDPOINT_URL" not in os.environ:
        parser.error('S3_TEST_ENDPOINT_URL is not set; run eval "$(.ci/ceph up)" first')
    with buckets(endpoint(), len(ALIASES)) as (vault, staging, release):
        os.environ |= endpoint().environment(vault)
        os.environ |= {"S3_STAGING_BUCKET": staging, "S3_RELEASE_BUCKET": release}
        with temporary_database(options.server.rstrip("/"), "strongroom_bench_egress"):
            from tests.factories import make_member, make_tenant

            acme = make_tenant("acme")
            roles = {"bob": "member", "grace": "information_governance", "ruth": "research_it"}
            users = {name: make_member(acme, name, role) for name, role in roles.items()}
            with diskless_worker() as egress, diskless_worker() as raw:
                run_round(users, egress, raw, files=50, mib=64)
                print("the lines above are from the warm-up round\n")
                rounds = [run_round(users, egress, raw, files=options.files, mib=options.mib) for _ in range(options.rounds)]
            print(f"median ratio {statistics.median(ratio for _, ratio in rounds):.2f}")
            return int(max(built.growth for built, _ in rounds) > MAX_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
