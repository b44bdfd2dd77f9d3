"""What befalls staged copies, packages and their stores: it is waited for, or the request fails and nothing is released.

INV-10, INV-11, INV-13; F-16, F-17, F-18, F-27, F-54, F-56.
"""

import io
import zipfile
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone
from pytest_django import Settings

from egress import jobs, staging
from egress.models import StagedFile
from egress.package import build
from files.models import Collection, StoredFile, Upload
from tenants import audit
from tenants.models import AuditEvent, Mail, Tenant, User
from tests import invariants, stores
from tests.faults.fault_injection import InlineExecutor
from tests.services import keyrings
from tests.services.egress import (
    FILES,
    REASON,
    Api,
    assert_wiped,
    body,
    decide,
    fill,
    go_on,
    in_bucket,
    make_reviewers,
    path,
    row,
    see,
    submit,
    work_on,
)
from tests.services.egress import approved as approve
from tests.services.purging import Stubborn
from vault.stores import StoreRefused, StoreUnavailable, get_store
from vault.stores.local import LocalStore
from vault.stores.s3 import S3Store


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets")]
MIB = 1024 * 1024


@pytest.fixture
def people(acme: Tenant, root: User) -> dict[str, User]:
    return make_reviewers(acme)


@pytest.fixture
def request_(approved: Any) -> Any:
    return approved


def staged(request: Any, filename: str) -> Path:
    """Where a copy lies."""
    item = StagedFile.objects.get(request=request["id"], round=row(request).round, filename=filename)
    store = get_store(item.store)
    assert isinstance(store, LocalStore)
    return store.root / item.object_key


def assert_released_once(request: Any, client: Any, files: dict[str, bytes] = FILES) -> None:
    """INV-13: one package with the right bytes, one step of release, and nothing left of what led to it."""
    assert row(request).status == "released", row(request).problem
    with zipfile.ZipFile(io.BytesIO(body(client.get(path(request, "package.zip"))))) as package:
        assert {name: package.read(name) for name in files} == files
    assert [step["status"] for step in see(client, request)["timeline"]].count("released") == 1
    (file,) = StoredFile.objects.filter(collection__kind=Collection.Kind.RELEASE)
    assert in_bucket("release") == [file.object_key]
    assert_wiped(request)
    assert row(request).problem == ""
    assert not Upload.objects.exists()
    invariants.check_all()


def assert_failed(request: Any, reason: str) -> None:
    """Nothing is released, and everybody concerned is told."""
    assert row(request).status == "failed"
    assert reason in row(request).problem
    assert in_bucket("release") == []
    assert not Upload.objects.exists()
    step = str(row(request).step)
    mails = [mail for mail in Mail.objects.filter(kind="egress_outcome", about=request["id"]) if mail.facts["step"] == step]
    told = sorted(address for mail in mails for address in (mail.recipient, *mail.copies))
    assert told == [f"{name}@example.org" for name in ("bob", "grace", "root", "ruth")]
    assert AuditEvent.objects.filter(action="egress.fail", target_id=request["id"]).exists()
    assert not list(audit.verify())


def retry(client: Any, request: Any) -> None:
    answer = client.post(path(request, "retry/"), {"reason": "The copy was put back."})
    assert answer.status_code == 200, answer.content


# --- Copies that are not what was approved ---


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    overwrite(path, bytes(content))


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "byte flipped": lambda copy, other: flip(copy),
    "header flipped": lambda copy, other: overwrite(copy, b"\x29" + copy.read_bytes()[1:]),
    "cut": lambda copy, other: overwrite(copy, copy.read_bytes()[:-1]),
    "emptied": lambda copy, other: overwrite(copy, b""),
    "longer": lambda copy, other: overwrite(copy, copy.read_bytes() + b"\0"),
    "another's": lambda copy, other: overwrite(copy, other.read_bytes()),
    "gone": lambda copy, other: copy.unlink(),
}


@pytest.mark.parametrize(
    "damage",
    [
        *("byte flipped", "header flipped", "longer", "gone"),
        *(pytest.param(damage, marks=pytest.mark.long) for damage in ("cut", "emptied", "another's")),
    ],
)
def test_damaged_copy_fails_the_request_until_it_is_repaired(request_: Any, damage: str, api: Api, bob: User, root: User) -> None:
    """INV-11, F-54: at any attempt, however often an operator has it tried."""
    copy, other = staged(request_, "b.csv"), staged(request_, "a.csv")
    good = copy.read_bytes()
    DAMAGES[damage](copy, other)

    work_on()
    assert_failed(request_, "file 2 differs from the approved file")
    retry(api(root), request_)
    work_on()
    assert_failed(request_, "file 2 differs from the approved file")

    overwrite(copy, good) if copy.exists() else copy.write_bytes(good)
    retry(api(root), request_)
    work_on()
    assert_released_once(request_, api(bob))


def test_copies_that_were_swapped_fail(request_: Any) -> None:
    first, second = staged(request_, "a.csv"), staged(request_, "b.csv")
    first_bytes = first.read_bytes()
    overwrite(first, second.read_bytes())
    overwrite(second, first_bytes)
    work_on()
    assert_failed(request_, "file 1 differs from the approved file")


@pytest.mark.parametrize(
    "change",
    [
        flip,
        pytest.param(lambda copy: copy.write_bytes(copy.read_bytes()[:-1]), marks=pytest.mark.long),
        pytest.param(lambda copy: copy.unlink(), marks=pytest.mark.long),
    ],
)
def test_copy_without_tags_is_caught_by_its_digest(
    api: Api, bob: User, people: dict[str, User], acme: Tenant, change: Callable[[Path], None]
) -> None:
    """A file that is stored as it is."""
    acme.allowed_ciphers = ["AES-GCM", "NONE"]
    acme.save()
    made = api(bob).post("/api/v1/collections/", {"display_name": "Plain", "cipher": "NONE"}).json()["id"]
    put = api(bob).put(f"/api/v1/collections/{made}/content/b.csv", FILES["b.csv"], content_type="text/csv")
    assert put.status_code == 201
    request = approve(api, bob, people, made)
    copy = staged(request, "b.csv")
    assert copy.read_bytes() == FILES["b.csv"]
    copy.chmod(0o600)
    change(copy)

    work_on()
    assert_failed(request, "differs from the approved file")


def test_source_that_is_damaged_before_it_is_copied_is_not_released(
    api: Api, bob: User, people: dict[str, User], results: str
) -> None:
    request = submit(api(bob), results)
    source = StoredFile.objects.get(filename="b.csv")
    vault = get_store("vault")
    assert isinstance(vault, LocalStore)
    flip(vault.root / source.object_key)
    work_on()
    for name in ("grace", "ruth"):
        assert decide(api(people[name]), request).status_code == 201
    work_on()
    assert_failed(request, "file 2 differs from the approved file")


def test_keys_that_are_rotated_behind_the_approval_make_the_same_package(
    request_: Any, api: Api, bob: User, settings: Settings
) -> None:
    settings.KEYRING = keyrings.ROTATED
    call_command("rotate_keys", stdout=StringIO())
    settings.KEYRING = keyrings.RETIRED
    work_on()
    assert_released_once(request_, api(bob))


def test_master_key_that_is_missing_is_waited_for(request_: Any, api: Api, bob: User, settings: Settings) -> None:
    """F-67: nothing says that the files are damaged."""
    settings.KEYRING = keyrings.RETIRED
    work_on()
    assert (row(request_).status, in_bucket("release")) == ("approved", [])
    assert row(request_).problem
    settings.KEYRING = keyrings.ROTATED
    go_on(6)
    assert_released_once(request_, api(bob))


# --- Stores that do not do what they are asked ---


def raising(error: Exception) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> Any:
        raise error

    return refuse


ERRORS = {"silent": StoreUnavailable("no answer"), "refuses": StoreRefused("AccessDenied"), "bug": RuntimeError("a bug")}
WAITS_AS = {"open": "approved", "create": "approved", "entries": "released", "erase": "released"}
IN_GATE = [("open", "silent"), ("create", "refuses"), ("entries", "bug"), ("erase", "silent")]


@pytest.mark.parametrize("error", ["refuses", *(pytest.param(error, marks=pytest.mark.long) for error in ("silent", "bug"))])
def test_store_that_does_not_copy_is_waited_for(
    api: Api, bob: User, people: dict[str, User], results: str, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """F-17, F-56: in copying. The request says that it waits, and goes on when the store does."""
    request = submit(api(bob), results)
    wait_for_store(request, monkeypatch, error, method="copy", waits_as="submitted")
    for name in ("grace", "ruth"):
        assert decide(api(people[name]), request).status_code == 201
    go_on(12)
    assert_released_once(request, api(bob))


@pytest.mark.parametrize(
    ("method", "error"),
    [pytest.param(*each, marks=[] if each in IN_GATE else pytest.mark.long) for each in product(WAITS_AS, ERRORS)],
)
def test_store_that_does_not_do_it_is_waited_for(
    request_: Any, api: Api, bob: User, monkeypatch: pytest.MonkeyPatch, method: str, error: str
) -> None:
    """F-17, F-56: in packaging and wiping."""
    wait_for_store(request_, monkeypatch, error, method=method, waits_as=WAITS_AS[method])
    assert_released_once(request_, api(bob))


def wait_for_store(request: Any, monkeypatch: pytest.MonkeyPatch, error: str, *, method: str, waits_as: str) -> None:
    monkeypatch.setattr("vault.content_reader.pause", lambda attempt: None)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, method, raising(ERRORS[error]))
        work_on()
        assert (row(request).status, bool(row(request).problem)) == (waits_as, True)
        assert "no answer" not in row(request).problem
        go_on(6)
        assert (row(request).status, bool(row(request).problem)) == (waits_as, True)
    go_on(12)


def test_attempts_that_are_used_up_fail_and_leave_nothing(
    request_: Any, api: Api, bob: User, root: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-27. An operator's retry begins to count anew."""
    with monkeypatch.context() as patch:
        patch.setattr("vault.stores.local.LocalWriter.commit", raising(StoreRefused("AccessDenied")))
        for attempt in range(build.MAX_ATTEMPTS):
            go_on(6 * attempt)
            assert row(request_).status == "approved"
        go_on(6 * build.MAX_ATTEMPTS)
    assert_failed(request_, "could not be built in 5 attempts. The storage is unavailable or refuses the operation")
    assert len(in_bucket("staging")) == len(FILES)  # for the retry

    retry(api(root), request_)
    go_on(6 * build.MAX_ATTEMPTS + 6)
    assert_released_once(request_, api(bob))


@pytest.mark.parametrize("step", [120, pytest.param(60, marks=pytest.mark.long)])
def test_store_that_is_away_uses_up_no_attempt_for_a_day(
    request_: Any, api: Api, bob: User, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """F-56. An outage is nobody's fault, and no package is given up for one that a night's repair ends."""
    with monkeypatch.context() as patch:
        patch.setattr("vault.stores.local.LocalWriter.commit", raising(StoreUnavailable("no answer")))
        for minutes in range(0, 23 * 60, step):
            go_on(minutes)
        assert row(request_).attempts > 2 * build.MAX_ATTEMPTS
        assert row(request_).status == "approved"
        for attempt in range(build.MAX_ATTEMPTS + 1):
            go_on(25 * 60 + 6 * attempt)
        assert_failed(request_, "could not be built in 5 attempts. The storage is unavailable or refuses the operation")


def test_what_failed_ends_with_nothing_left(request_: Any, api: Api, bob: User) -> None:
    staged(request_, "b.csv").unlink()
    work_on()
    assert_failed(request_, "file 2")
    assert api(bob).post(path(request_, "withdraw/"), {"reason": REASON}).status_code == 200
    work_on()
    assert_wiped(request_)
    assert Collection.objects.get(kind=Collection.Kind.RELEASE).purge_at is not None


# --- People who lose a right while the package is written ---


def demote(people: dict[str, User]) -> None:
    people["ruth"].memberships.update(roles=["auditor"])


def deactivate(people: dict[str, User]) -> None:
    User.objects.filter(pk=people["ruth"].pk).update(is_active=False)


def suspend(people: dict[str, User]) -> None:
    Tenant.objects.update(is_active=False)


def dismiss_requester(people: dict[str, User]) -> None:
    User.objects.filter(username="bob").update(is_active=False)


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("meddle", "status", "stage"),
    [
        (lambda people: None, "released", 1),
        (demote, "in_review", 1),
        (deactivate, "in_review", 1),
        (suspend, "in_review", 0),
        (dismiss_requester, "failed", 1),
    ],
    ids=["nobody", "approver demoted", "approver deactivated", "tenant suspended", "requester deactivated"],
)
def test_right_that_is_lost_while_the_package_is_written_keeps_it_from_being_released(
    request_: Any,
    people: dict[str, User],
    meddle: Callable[[dict[str, User]], None],
    status: str,
    stage: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F-49, INV-10, INV-16: between the check before the first byte and the one that releases."""
    create = LocalStore.create

    def meddling(self: LocalStore, key: str, **options: Any) -> Any:
        if key not in set(StagedFile.objects.values_list("object_key", flat=True)):  # the package's
            meddle(people)
        return create(self, key, **options)

    monkeypatch.setattr(LocalStore, "create", meddling)
    jobs.build_package(now=timezone.now())
    found = row(request_)
    assert (found.status, found.stage) == (status, stage), found.problem
    assert len(in_bucket("release")) == (1 if status == "released" else 0)
    assert StoredFile.objects.filter(collection__kind=Collection.Kind.RELEASE).count() == (1 if status == "released" else 0)
    assert not Upload.objects.exists()
    assert (found.manifest != "") == (status == "released")
    if status == "in_review":
        assert found.decisions.filter(voided_at=None).count() == stage


# --- Wiping ---


@pytest.fixture
def stubborn(request_: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of a copy that will not go."""
    staging = settings.STORAGES["staging"]
    settings.STORAGES = settings.STORAGES | {"staging": staging | {"BACKEND": "tests.services.purging.Stubborn"}}
    key = StagedFile.objects.get(request=request_["id"], filename="b.csv").object_key
    monkeypatch.setattr(Stubborn, "locked", key)
    return key


def test_copy_that_will_not_go_is_not_called_wiped(
    request_: Any, stubborn: str, api: Api, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-17, F-18: nobody reads it, and it is tried again until a listing does not show it."""
    work_on()
    assert in_bucket("staging") == [stubborn]
    assert not StagedFile.objects.filter(status=StagedFile.Status.WIPED).exists()
    assert not AuditEvent.objects.filter(action="egress.wipe").exists()
    assert "storage" in row(request_).problem

    monkeypatch.setattr(Stubborn, "locked", "")
    go_on(6)
    assert_released_once(request_, api(bob))
    assert AuditEvent.objects.filter(action="egress.wipe", target_id=request_["id"]).count() == 1


def test_store_that_only_says_that_it_erased_is_not_believed(
    request_: Any, api: Api, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "erase", lambda self, entries: [])
        work_on()
        assert not StagedFile.objects.exclude(wiped_at=None).exists()
    go_on(6)
    assert_released_once(request_, api(bob))


def test_rejected_copies_are_nobodys_at_once_and_gone_within_a_tick(api: Api, people: dict[str, User], in_review: Any) -> None:
    request = in_review
    grace = api(people["grace"])
    assert body(grace.get(path(request, "items/2/content"))) == FILES["b.csv"]
    assert decide(grace, request, "reject").status_code == 201
    assert grace.get(path(request, "items/2/content")).status_code == 409
    assert len(in_bucket("staging")) == len(FILES)
    jobs.tick(now=timezone.now())
    assert_wiped(request)


def test_old_copies_that_will_not_go_do_not_hold_up_the_next_round(
    api: Api, bob: User, people: dict[str, User], in_review: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = in_review
    place = settings.STORAGES["staging"]
    settings.STORAGES = settings.STORAGES | {"staging": place | {"BACKEND": "tests.services.purging.Stubborn"}}
    monkeypatch.setattr(Stubborn, "locked", StagedFile.objects.get(filename="b.csv").object_key)
    assert decide(api(people["grace"]), request, "return").status_code == 201
    work_on()
    assert api(bob).post(path(request, "resubmit/"), {}).status_code == 200
    go_on(6)
    assert row(request).status == "in_review"
    for name in ("grace", "ruth"):
        assert decide(api(people[name]), request).status_code == 201
    go_on(12)
    assert row(request).status == "released"
    monkeypatch.setattr(Stubborn, "locked", "")
    go_on(18)
    assert_released_once(request, api(bob))


@pytest.mark.both_databases
def test_copies_of_a_request_that_is_withdrawn_meanwhile_are_wiped_at_once(
    api: Api, bob: User, results: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was copying gives way, and the next tick need not wait until it is taken for dead."""
    request = submit(api(bob), results)
    copy = LocalStore.copy

    def withdrawing(self: LocalStore, *args: Any, **options: Any) -> Any:
        if row(request).status == "submitted":
            assert api(bob).post(path(request, "withdraw/"), {"reason": REASON}).status_code == 200
        return copy(self, *args, **options)

    monkeypatch.setattr(staging, "COPY_THREADS", 1)
    monkeypatch.setattr(LocalStore, "copy", withdrawing)
    monkeypatch.setattr(staging, "ThreadPoolExecutor", InlineExecutor)
    work_on()
    assert row(request).status == "withdrawn"
    assert_wiped(request)


# --- On S3 ---


@pytest.fixture(params=stores.SERVER_PARAMS)
def endpoint(request: pytest.FixtureRequest) -> stores.Endpoint:
    return stores.SERVERS[request.param]()


@pytest.fixture
def buckets(endpoint: stores.Endpoint, settings: Settings) -> Iterator[dict[str, str]]:
    with stores.use_new_buckets(endpoint, settings) as by_alias:
        yield by_alias


def test_every_version_of_a_copy_goes(
    endpoint: stores.Endpoint, buckets: dict[str, str], api: Api, bob: User, people: dict[str, User]
) -> None:
    """F-18: also one that somebody overwrote, and one that somebody hid behind a marker."""
    client, bucket = endpoint.client, buckets["staging"]
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    request = submit(api(bob), fill(api(bob)))
    work_on()
    first, second, _ = StagedFile.objects.order_by("number")
    client.put_object(Bucket=bucket, Key=first.object_key, Body=b"another")
    client.delete_object(Bucket=bucket, Key=second.object_key)
    assert decide(api(people["grace"]), request, "reject").status_code == 201
    work_on()
    assert_wiped(request)
    found = client.list_object_versions(Bucket=bucket)
    assert "Versions" not in found
    assert "DeleteMarkers" not in found


def test_large_copies_are_made_in_parts(
    endpoint: stores.Endpoint,
    buckets: dict[str, str],
    api: Api,
    bob: User,
    people: dict[str, User],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F-16: what is above the limit of one CopyObject, with the limit brought down from 256 MiB."""
    monkeypatch.setattr(S3Store, "copy_bytes", 5 * MIB)
    files = {"a.csv": FILES["a.csv"], "large.bin": b"0123456789abcdef" * (12 * MIB // 16)}
    request = approve(api, bob, people, fill(api(bob), files=files))
    large = StagedFile.objects.get(filename="large.bin")
    assert large.object_etag.endswith("-3")
    work_on()
    assert_released_once(request, api(bob), files)
