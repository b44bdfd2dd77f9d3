"""Fixtures: a server behind fault-injecting proxies to PostgreSQL and the real S3 server, and moto with fault injection."""

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


MAX_NEW_CONNECTIONS = 40  # that the store's client may keep after a test, for parallel requests and parts of uploads


@dataclass
class Site:
    server: Server
    s3: Proxy  # between the server and its S3
    database: Proxy  # between the server and its PostgreSQL
    vault: str  # bucket

    def keys(self) -> set[str]:
        """Returns the keys of the objects in the vault, without the proxy."""
        pages = stores.ceph().client.get_paginator("list_objects_v2").paginate(Bucket=self.vault)
        return {item["Key"] for page in pages for item in page.get("Contents", ()) if not item["Key"].startswith(OWN_PREFIX)}

    def descriptors(self) -> int:
        """Returns the number of open descriptors of the web server without its database connections, whose pool never shrinks."""
        self.server.request("GET", "/readyz")  # the pool drops broken connections at its next use
        return self.server.descriptors() - self.database.connections

    def unfinished(self) -> set[str]:
        """Returns the keys of multipart uploads that were neither completed nor aborted."""
        return {item["Key"] for item in stores.ceph().client.list_multipart_uploads(Bucket=self.vault).get("Uploads", ())}


@contextmanager
def started_site(home: Path, *, template: str = "", is_timed: bool = False, **settings: str) -> Iterator[Site]:
    """Starts a server behind the proxies. With `is_timed`, it connects to the database directly, for accurate measurements."""
    endpoint = stores.ceph()
    with (
        postgresql_database(template) as url,
        proxy_to(url) as database,
        proxy_to(endpoint.url) as s3,
        stores.buckets(endpoint, len(stores.ALIASES)) as (vault, staging, release),
    ):
        environment = endpoint.environment(vault) | {
            "DATABASE_POOL": "8",  # the sites of all test workers share PostgreSQL's default of 100 connections
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
    """The shared site, consistent before and after each test: no differences between objects, counters and rows, no leftovers."""
    server = shared_site.server
    if not server.processes():  # a failed test may have killed it
        server.start()
    server.expire_leases()
    wait_for(server.has_no_leftovers)
    descriptors = shared_site.descriptors()
    yield shared_site
    wait_for(server.has_no_leftovers)
    server.check_consistency()
    assert shared_site.unfinished() == set()
    wait_for(lambda: shared_site.descriptors() <= descriptors + MAX_NEW_CONNECTIONS)


@pytest.fixture
def member(site: Site, tmp_path: Path) -> Person:
    return Person(site.server, "member", tmp_path)


@pytest.fixture
def faults(db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[stores.Faults]:
    """Fault injection for moto, the store of this process. Retries do not sleep."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    with stores.use_new_buckets(stores.moto(), settings):
        yield stores.moto_server()[1]


@contextmanager
def postgresql_database(template: str = "") -> Iterator[str]:
    """Creates a separate database as a copy of the template, and yields its URL."""
    address = urlsplit(needs.address("postgresql"))
    name = f"strongroom_live_{uuid.uuid4().hex}"
    with psycopg.connect(address._replace(path="/postgres").geturl(), autocommit=True) as postgresql:
        names = sql.Identifier(name), sql.Identifier(template or "template1")
        postgresql.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        try:
            yield address._replace(path=f"/{name}").geturl()
        finally:
            postgresql.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
