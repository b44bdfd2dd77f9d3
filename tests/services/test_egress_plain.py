"""The package as a plain zip, for a data lake whose bucket encrypts by itself: only where the tenant allows it, and only where
the bucket does."""

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from pytest_django import Settings

from egress.models import StagedFile
from files.models import Collection, StoredFile
from tenants.models import Tenant, User
from tests import stores
from tests.services.egress import (
    Api,
    approved,
    body,
    decide,
    fill,
    in_bucket,
    make_reviewers,
    path,
    released,
    row,
    submit,
    work_on,
)
from vault.stores import get_store


if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


@pytest.fixture
def lake(api: Api, alice: User, acme: Tenant) -> None:
    """acme's packages are plain."""
    acme.allowed_ciphers = ["AES-GCM", "NONE"]
    acme.save()
    assert set_format(api(alice), "plain").status_code == 200


def set_format(client: Any, release_format: str) -> Any:
    return client.put("/api/v1/tenants/acme/egress-policy/", {"release_format": release_format})


def package() -> StoredFile:
    return StoredFile.objects.get(collection__kind=Collection.Kind.RELEASE)


def stored(key: str) -> bytes:
    _, content = get_store("release").open(key, start=0, length=10**6, etag=None)
    try:
        return bytes(content.read(10**6))
    finally:
        content.close()


@pytest.mark.usefixtures("lake")
def test_plain_package_is_the_zip_itself_in_its_bucket(api: Api, bob: User, people: dict[str, User], results: str) -> None:
    request = released(api, bob, people, results)

    content = stored(package().object_key)
    assert (package().cipher, len(content)) == ("NONE", row(request).package_length)
    assert hashlib.sha256(content).hexdigest() == row(request).package_sha256
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert opened.testzip() is None
    assert body(api(bob).get(path(request, "package.zip"))) == content


def test_plain_package_is_refused_where_everything_is_encrypted(
    api: Api, alice: User, bob: User, people: dict[str, User], acme: Tenant, results: str
) -> None:
    """When the policy is set, and when the tenant changed its mind behind the approval."""
    refused = set_format(api(alice), "plain")
    assert (refused.status_code, refused.json()["code"]) == (400, "cipher_not_allowed"), refused.json()

    acme.allowed_ciphers = ["AES-GCM", "NONE"]
    acme.save()
    assert set_format(api(alice), "plain").status_code == 200
    request = submit(api(bob), results)
    work_on()
    acme.allowed_ciphers = ["AES-GCM"]
    acme.save()
    for name in ("grace", "ruth"):
        assert decide(api(people[name]), request).status_code == 201
    work_on()

    assert row(request).status == "failed"
    assert "no longer allows unencrypted files" in row(request).problem
    assert not list(get_store("release").entries(""))


# --- Encrypted by its bucket ---


@pytest.fixture
def buckets(own_buckets: object, settings: Settings) -> Iterator[dict[str, str]]:
    with stores.use_new_buckets(stores.moto(), settings) as by_alias:
        yield by_alias


@pytest.mark.parametrize("encryption", ["AES256", pytest.param("aws:kms", marks=pytest.mark.long)])
@pytest.mark.usefixtures("lake")
def test_plain_package_is_encrypted_by_its_bucket_and_no_other_object_is(
    buckets: dict[str, str], api: Api, bob: User, people: dict[str, User], settings: Settings, encryption: str
) -> None:
    settings.S3_RELEASE_SSE = encryption
    request = approved(api, bob, people, fill(api(bob)))
    (first, *_) = StagedFile.objects.order_by("number")
    client = stores.moto().client
    assert "ServerSideEncryption" not in client.head_object(Bucket=buckets["staging"], Key=first.object_key)
    work_on()

    found = client.head_object(Bucket=buckets["release"], Key=package().object_key)
    assert (row(request).status, found["ServerSideEncryption"]) == ("released", encryption)
    assert body(api(bob).get(path(request, "package.zip"))) == stored(package().object_key)


def deaf(environ: "WSGIEnvironment", start: "StartResponse", application: "WSGIApplication") -> Iterable[bytes]:
    """An S3 that knows nothing of server-side encryption, and does not say so."""
    environ.pop("HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION", None)
    return application(environ, start)


@pytest.mark.usefixtures("buckets", "lake")
def test_plain_package_does_not_go_where_nobody_encrypts_it(
    api: Api, bob: User, people: dict[str, User], settings: Settings
) -> None:
    """At once, and without a byte: no waiting makes anything else of it. An operator who vouches for the bucket can say so."""
    request = approved(api, bob, people, fill(api(bob)))
    with stores.moto_server()[1].during(deaf) as seen:
        work_on()
    assert row(request).status == "failed"
    assert "does not encrypt" in row(request).problem
    assert in_bucket("release") == []
    assert not [each for each in seen if each["REQUEST_METHOD"] == "PUT" and "partNumber" in each["QUERY_STRING"]]

    settings.S3_RELEASE_SSE = "none"
    root = User.objects.create_superuser("root", "root@example.org", "unused")
    assert api(root).post(path(request, "retry/"), {}).status_code == 200
    with stores.moto_server()[1].during(deaf):
        work_on()
    assert row(request).status == "released"


@pytest.mark.needs("ceph")
def test_ceph_without_a_key_service_gets_no_plain_package(
    api: Api, bob: User, people: dict[str, User], settings: Settings, lake: None
) -> None:
    """The real server, which says so by refusing."""
    with stores.use_new_buckets(stores.ceph(), settings):
        request = approved(api, bob, people, fill(api(bob)))
        work_on()
        assert row(request).status == "failed"
        assert "does not encrypt" in row(request).problem
        assert in_bucket("release") == []
