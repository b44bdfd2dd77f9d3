"""Compares a download through Strongroom with a download directly from S3 and with one through nginx as a plain proxy.

Each round measures each route once, so that all routes are measured at the same speed of the machine. The medians of the ratios
are meaningful, the absolute rates are not. Needs a real S3 server: eval "$(.ci/ceph up)". Skips nginx if it is not installed.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.live.server import Server
from tests.stores import Endpoint, buckets


MIB = 1024**2
PIECE = os.urandom(MIB)

NGINX = """
daemon off; worker_processes 1; error_log {folder}/error.log; pid {folder}/pid;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {s3}; proxy_set_header Host {host}; proxy_buffering off; proxy_http_version 1.1; }}
  }}
}}
"""


@dataclass
class Sample:
    first_byte: float  # seconds
    rate: float  # MiB per second
    cpu: float  # CPU seconds per GiB of the server processes


@dataclass
class Route:
    name: str
    url: str
    headers: dict[str, str]
    processes: Callable[[], list[psutil.Process]]

    def fetch(self, size: int) -> Sample:
        before = cpu_seconds(self.processes())
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        started = time.perf_counter()
        connection.request("GET", f"{parts.path}?{parts.query}", headers=self.headers)
        response = connection.getresponse()
        buffer = bytearray(MIB)
        received = response.readinto(memoryview(buffer)[:1])
        first_byte = time.perf_counter() - started
        while count := response.readinto(buffer):
            received += count
        seconds = time.perf_counter() - started
        connection.close()
        assert (response.status, received) == (200, size), (self.name, response.status, received)
        return Sample(first_byte, size / MIB / seconds, (cpu_seconds(self.processes()) - before) / (size / 1024**3))


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextmanager
def nginx(endpoint: str) -> Iterator[tuple[str, Callable[[], list[psutil.Process]]] | None]:
    if not (program := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        port = 18_480
        config = NGINX.format(folder=folder, port=port, s3=endpoint, host=urlsplit(endpoint).netloc)
        (Path(folder) / "nginx.conf").write_text(config)
        master = subprocess.Popen([program, "-c", f"{folder}/nginx.conf"], stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            family = psutil.Process(master.pid)
            yield f"http://127.0.0.1:{port}", lambda: [family, *family.children()]
        finally:
            master.terminate()
            master.wait()


@contextmanager
def peak_memory(memory: Callable[[], int]) -> Iterator[list[float]]:
    """The largest growth of `memory`, a function that returns bytes, while the block runs. In MiB, in a list of one number."""
    base, growth, has_ended = memory(), [0.0], threading.Event()

    def watch() -> None:
        while not has_ended.wait(0.1):
            growth[0] = max(growth[0], (memory() - base) / MIB)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield growth
    finally:
        has_ended.set()
        watcher.join()


def upload(server: Server, address: str, headers: dict[str, str], mib: int) -> float:
    """Uploads `mib` MiB. Returns the rate in MiB per second."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    started = time.perf_counter()
    connection.request("PUT", address, (PIECE for _ in range(mib)), headers | {"Content-Length": str(mib * MIB)})
    response = connection.getresponse()
    assert response.status == 201, response.read()
    return mib / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="size of the file in MiB (512)")
    parser.add_argument("--rounds", type=int, default=15, help="number of downloads per route (15)")
    options = parser.parse_args()
    if "S3_TEST_ENDPOINT_URL" not in os.environ:
        parser.error('S3_TEST_ENDPOINT_URL is not set; run eval "$(.ci/ceph up)" first')
    endpoint = Endpoint(os.environ["S3_TEST_ENDPOINT_URL"], os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    with buckets(endpoint, 4) as names, tempfile.TemporaryDirectory() as home, nginx(endpoint.url) as proxy:
        others = {f"S3_{alias}_BUCKET": name for alias, name in zip(("STAGING", "RELEASE", "PUBLIC"), names[1:], strict=True)}
        server = Server(Path(home) / "home", **endpoint.environment(names[0]), **others).start()
        try:
            run(server, endpoint, names[0], proxy, mib=options.mib, rounds=options.rounds)
        finally:
            server.kill()


def run(
    server: Server,
    endpoint: Endpoint,
    bucket: str,
    proxy: tuple[str, Callable[[], list[psutil.Process]]] | None,
    *,
    mib: int,
    rounds: int,
) -> None:
    token_json = server.manage("createusertoken", server.demo["users"]["member"]["username"], "--lifetime", "8h")
    headers = {"Authorization": f"Bearer {json.loads(token_json)['access']}"}
    token = headers["Authorization"].removeprefix("Bearer ")
    _, collection = server.request("POST", "/api/v1/collections/", token=token, body={"display_name": "bench"})
    content = f"/api/v1/collections/{collection['id']}/content"
    with peak_memory(server.memory) as growth:
        rate = upload(server, f"{content}/big.bin", headers, mib)
    print(f"upload of {mib} MiB: {rate:.0f} MiB/s, memory of all processes grew by {growth[0]:.1f} MiB")

    client = endpoint.client
    source: Any = RepeatedPiece(mib)
    client.upload_fileobj(source, bucket, "raw")
    presigned = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "raw"}, ExpiresIn=3600)
    routes = [
        Route("direct from S3", presigned, {}, list),
        Route("strongroom", f"{server.url}{content}/big.bin", headers, server.processes),
    ]
    if proxy:
        routes.insert(1, Route("nginx raw proxy", presigned.replace(endpoint.url, proxy[0]), {}, proxy[1]))
    samples: dict[str, list[Sample]] = {route.name: [] for route in routes}
    for route in routes:
        route.fetch(mib * MIB)
    with peak_memory(server.memory) as growth:
        for _ in range(rounds):
            for route in routes:
                samples[route.name].append(route.fetch(mib * MIB))
    print(f"download of {mib} MiB, {rounds} rounds, medians; memory of all processes grew by {growth[0]:.1f} MiB\n")
    print(f"{'':18}{'MiB/s':>8}{'of nginx':>10}{'of direct':>10}{'first byte ms':>15}{'CPU-s/GiB':>11}")
    for name, own in samples.items():
        print(
            f"{name:18}{median(own, 'rate'):8.0f}{ratio(own, samples.get('nginx raw proxy')):>10}"
            f"{ratio(own, samples['direct from S3']):>10}{median(own, 'first_byte') * 1000:15.1f}{median(own, 'cpu'):11.2f}"
        )


def median(samples: list[Sample], name: str) -> float:
    return float(statistics.median(getattr(sample, name) for sample in samples))


def ratio(samples: list[Sample], others: list[Sample] | None) -> str:
    if not others:
        return "-"
    return f"{statistics.median(a.rate / b.rate for a, b in zip(samples, others, strict=True)):.2f}"


class RepeatedPiece:
    """A file of `mib` MiB that needs little memory."""

    def __init__(self, mib: int) -> None:
        self._left = mib * MIB

    def read(self, size: int = -1) -> bytes:
        taken = min(self._left, size if size >= 0 else self._left)
        self._left -= taken
        return (PIECE * (-(-taken // MIB)))[:taken]


if __name__ == "__main__":
    main()
