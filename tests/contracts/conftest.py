"""The stores that must fulfil the contract: a local directory, moto, and a real S3 server."""

import uuid
from collections.abc import Iterator

import pytest

from tests import stores
from vault.stores import ObjectStore
from vault.stores.local import LocalStore
from vault.stores.s3 import S3Store


@pytest.fixture(scope="session", params=["local", *stores.SERVER_PARAMS])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ObjectStore]]:
    """Two stores of one kind, which can copy objects from each other."""
    if request.param == "local":
        yield [LocalStore(location=tmp_path_factory.mktemp(alias)) for alias in ("vault", "staging")]
    else:
        endpoint = stores.SERVERS[request.param]()
        with stores.buckets(endpoint, 2) as names:
            yield [endpoint.store(name) for name in names]


@pytest.fixture
def vault(pair: list[ObjectStore]) -> ObjectStore:
    return pair[0]


@pytest.fixture
def staging(pair: list[ObjectStore]) -> ObjectStore:
    return pair[1]


@pytest.fixture
def prefix(pair: list[ObjectStore]) -> Iterator[str]:
    """A key prefix that only this test uses, with a final slash."""
    name = f"{uuid.uuid4().hex}/"
    yield name
    for store in pair:
        store.erase(store.entries(name))  # each listing in moto copies the whole bucket


@pytest.fixture(scope="session", params=stores.SERVER_PARAMS)
def endpoint(request: pytest.FixtureRequest) -> stores.Endpoint:
    return stores.SERVERS[request.param]()


@pytest.fixture
def bucket(endpoint: stores.Endpoint) -> Iterator[str]:
    with stores.buckets(endpoint, 1) as (name,):
        yield name


@pytest.fixture
def s3(endpoint: stores.Endpoint, bucket: str) -> S3Store:
    return endpoint.store(bucket)
