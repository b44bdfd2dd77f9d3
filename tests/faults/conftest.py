"""A server on PostgreSQL and the real S3 server, and doors to both that can be made to fail; a door to moto for this process."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from pytest_django import Settings

from tests import needs, stores
from tests.live.people import Person
from tests.live.proxy import Proxy, proxy_to
from tests.live.server import OWN_PREFIX, Server
from tests.live.waiting import wait_for
from tests.needs import mark_dependents
from tests.worlds import Databases


KEPT = 40  # connections that the store's client may have made in a test: as many as requests came at once, and parts of uploads


@dataclass
class Site:
    server: Server
    s3: Proxy  # between the server and its S3
    database: Proxy  # between the server and its PostgreSQL
    vault: str  # bucket

    def keys(self) -> set[str]:
        """Objects in the vault, seen past the proxy."""
        pages = stores.ceph().client.get_paginator("list_objects_v2").paginate(Bucket=self.vault)
        return {item["Key"] for page in pages for item in page.get("Contents", ()) if not item["Key"].startswith(OWN_PREFIX)}

    def descriptors(self) -> int:
        """What the web server has open but for its pool of connections to the database, which stays as large as it once was."""
        self.server.request("GET", "/readyz")  # the pool drops what broke when it is next used
        return self.server.descriptors() - self.database.connections

    def unfinished(self) -> set[str]:
        """Keys of multipart uploads that nobody completed or aborted."""
        return {item["Key"] for item in stores.ceph().client.list_multipart_uploads(Bucket=self.vault).get("Uploads", ())}


@contextmanager
def started_site(home: Path, *, template: str = "", is_timed: bool = False, **settings: str) -> Iterator[Site]:
    """With `is_timed` nothing stands between the server and its database: the proxy would be part of what is measured."""
    endpoint = stores.ceph()
    with (
        postgresql_database(template) as url,
        proxy_to(url) as database,
        proxy_to(endpoint.url) as s3,
        stores.buckets(endpoint, len(stores.ALIASES)) as (vault, staging, release),
    ):
        environment = endpoint.environment(vault) | {
            "DATABASE_POOL": "8",  # the sites of all test workers share the 100 connections that PostgreSQL has by default
            "S3_ENDPOINT_URL": s3.url,
            "S3_STAGING_BUCKET": staging,
            "S3_RELEASE_BUCKET": release,
            "DATABASE_URL": url if is_timed else database.url,
        }
        server = Server(home, **environment | settings)
        server.database = url
        try:
            yield Site(server.start(), s3, database, vault)
        finally:
            server.kill()


@pytest.fixture(scope="session")
@mark_dependents(pytest.mark.server, pytest.mark.needs("ceph", "postgresql"))
def shared_site(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site") / "home"
    with started_site(home, template=databases.migrated, DATABASE_TIMEOUT="4") as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """Tidy before and after each test: objects and counts agree with the rows, no unfinished upload, no descriptor left open."""
    server = shared_site.server
    if not server.processes():  # as a test that failed may have left it
        server.start()
    server.expire_leases()
    wait_for(server.has_no_leftovers)
    descriptors = shared_site.descriptors()
    yield shared_site
    wait_for(server.has_no_leftovers)
    server.check_consistency()
    assert shared_site.unfinished() == set()
    wait_for(lambda: shared_site.descriptors() <= descriptors + KEPT)


@pytest.fixture
def member(site: Site, tmp_path: Path) -> Person:
    return Person(site.server, "member", tmp_path)


@pytest.fixture
def faults(db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[stores.Faults]:
    """The door of the store that services in this process write to: moto. Nobody waits between two attempts."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    with stores.use_new_buckets(stores.moto(), settings):
        yield stores.moto_server()[1]


@contextmanager
def postgresql_database(template: str = "") -> Iterator[str]:
    """The address of a new database beside the one that the suite uses, which begins as a copy of another."""
    address = urlsplit(needs.address("postgresql"))
    name = f"strongroom_live_{uuid.uuid4().hex}"
    with psycopg.connect(address._replace(path="/postgres").geturl(), autocommit=True) as postgresql:
        names = sql.Identifier(name), sql.Identifier(template or "template1")
        postgresql.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        try:
            yield address._replace(path=f"/{name}").geturl()
        finally:
            postgresql.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
