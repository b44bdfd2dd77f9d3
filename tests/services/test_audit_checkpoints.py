"""Audit checkpoints: what they tell that the database alone does not, and what is done to them (INV-14, INV-20, F-61)."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import CommandError, call_command
from django.db import connection
from pytest_django import Settings

from config.celery import app
from files.tasks import tick
from tenants import audit
from tenants.models import AuditEvent, AuditHead, Tenant, User
from tenants.work import triggers
from tests import stores
from tests.races import race
from tests.services.keyrings import RETIRED, ROTATED
from tests.services.test_audit import append, rewrite
from vault import audit_checkpoints, keys, signing, tasks
from vault.models import Key
from vault.stores import ObjectStore, StoreUnavailable, get_store


ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 11, 21, 12, 3, tzinfo=UTC)
TEN = timedelta(minutes=10)

pytestmark = pytest.mark.django_db
LOCAL = pytest.param("local", marks=pytest.mark.both_databases)


LONG = [
    pytest.param("moto", marks=pytest.mark.long),
    pytest.param("ceph", marks=[pytest.mark.needs("ceph"), pytest.mark.long]),
]
on_every_store = pytest.mark.parametrize("vault", [LOCAL, *stores.SERVER_PARAMS], indirect=True)


@pytest.fixture(params=[LOCAL, *LONG])
def vault(request: pytest.FixtureRequest, settings: Settings) -> Iterator[ObjectStore]:
    """An empty one, on every kind of store."""
    with ExitStack() as stack:
        if request.param == "local":
            request.getfixturevalue("own_buckets")
        else:
            stack.enter_context(stores.use_new_buckets(stores.SERVERS[request.param](), settings))
        yield get_store("vault")


@pytest.fixture
def local(own_buckets: Path) -> Path:
    """The folder of the checkpoints, for what does not depend on the kind of store."""
    return own_buckets / "vault" / ".strongroom" / "audit"


def publish(number: int) -> str | None:
    """In the period with this number."""
    return audit_checkpoints.publish(now=NOON + number * TEN)


def verified(*options: str) -> str:
    output = StringIO()
    call_command("verify_audit", *options, stdout=output, stderr=output)
    return output.getvalue()


def damaged(*options: str) -> list[str]:
    """The lines of damage; the command has to fail."""
    output = StringIO()
    with pytest.raises(CommandError, match=r"^Damaged chains: \d+\. Damaged checkpoints: \d+\.$"):
        call_command("verify_audit", *options, stdout=output, stderr=output)
    return [line for line in output.getvalue().splitlines() if line.startswith(("chain ", "checkpoint "))]


def read(store: ObjectStore, key: str) -> Any:
    size = store.stat(key).size
    _, body = store.open(key, start=0, length=size, etag=None)
    try:
        return json.loads(body.read(size))
    finally:
        body.close()


def check() -> Callable[[bytes, bytes], Any]:
    """What docs/audit.md prints for auditors."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "audit.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/audit.md", "exec"), names)  # noqa: S102  that is the test
    checked: Callable[[bytes, bytes], Any] = names["check"]
    return checked


@pytest.fixture
def trail(acme: Tenant, globex: Tenant, now: datetime) -> None:
    append(acme, now, count=4)
    append(globex, now, count=2)


# --- Publishing ---


@on_every_store
def test_checkpoint_names_every_head_and_whoever_has_the_public_key_can_check_it(
    vault: ObjectStore, trail: None, acme: Tenant, globex: Tenant
) -> None:
    key = publish(0)
    assert key == ".strongroom/audit/2026-11-21T1200Z.json"
    document = read(vault, key)
    publication = document["publication"]
    heads = {head.chain: {"seq": head.seq, "hash": head.hash} for head in AuditHead.objects.all()}
    assert publication == {
        "version": 1,
        "at": "2026-11-21T12:03:00.000000+00:00",
        "key": str(Key.objects.get(purpose="audit").pk),
        "previous": None,
        "heads": heads,
    }
    assert {head["seq"] for head in publication["heads"].values()} == {1, 2, 4}  # the platform's has the making of the key
    pem, content = verified("--public-key").encode(), signing.canonical_json(document)
    assert check()(pem, content) == publication
    with pytest.raises(InvalidSignature):
        check()(pem, content.replace(b'"seq":4', b'"seq":3'))
    assert verified("--all").splitlines() == [
        "Checkpoints: 1 since 2026-11-21T1200Z, the newest from 2026-11-21 12:03 UTC; 0 events have been recorded since.",
        "The audit trail is intact: 3 chains.",
    ]


def test_checkpoints_follow_each_other_and_none_is_made_while_nothing_moves(
    vault: ObjectStore, trail: None, acme: Tenant, now: datetime
) -> None:
    first = publish(0)
    assert publish(1) is None
    append(acme, now)
    assert publish(0) is None  # its name is taken
    second = publish(150)  # tomorrow
    append(acme, now)
    third = publish(150 + 6 * 24 * 15)  # in another month
    assert first is not None
    assert second is not None
    assert third is not None
    assert sorted([third, first, second]) == [first, second, third]
    assert read(vault, second)["publication"]["previous"]["key"] == first
    assert read(vault, third)["publication"]["previous"]["key"] == second
    assert verified("--all").startswith("Checkpoints: 3 since 2026-11-21T1200Z, the newest from 2026-12-07 13:03 UTC; 0 events")


def test_verify_before_the_first_checkpoint_says_so(local: Path, trail: None) -> None:
    assert verified().splitlines() == [
        "There is no checkpoint yet: events deleted from the end of a chain would not be detected.",
        "The audit trail is intact: 2 chains.",
    ]
    with pytest.raises(CommandError, match="There is no signing key yet"):
        call_command("verify_audit", "--public-key")


def test_verify_says_how_many_events_nobody_signed_yet(local: Path, trail: None, acme: Tenant, now: datetime) -> None:
    publish(0)
    append(acme, now, count=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django.utils.timezone.now", lambda: NOON + TEN)
        assert verified().startswith(
            "Checkpoints: 1 since 2026-11-21T1200Z, the newest from 2026-11-21 12:03 UTC; 3 events have been recorded since.\n"
        )
        patch.setattr("django.utils.timezone.now", lambda: NOON + 7 * TEN)
        assert "over an hour old" in verified()


@pytest.mark.django_db(transaction=True)
def test_workers_that_publish_at_once_make_one_key_and_one_checkpoint(local: Path, acme: Tenant, now: datetime) -> None:
    append(acme, now)
    race([partial(publish, 0)] * 6)
    assert [path.name for path in local.iterdir()] == ["2026-11-21T1200Z.json"]
    assert Key.objects.count() == AuditEvent.objects.filter(action="key.create").count() == 1
    publish(1)
    assert "intact" in verified("--all")


def test_store_that_does_not_answer_is_logged_and_tried_again(
    local: Path, trail: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Down:
        def entries(self, prefix: str) -> Iterator[Any]:
            raise StoreUnavailable("ListObjectVersions: 503")

    with monkeypatch.context() as patch:
        patch.setattr(audit_checkpoints, "get_store", lambda _: Down())
        assert publish(0) is None
        with pytest.raises(CommandError, match="could not be read: ListObjectVersions: 503"):
            verified()
    assert [record.message for record in caplog.records] == ["no audit checkpoint was published"]
    assert publish(0) is not None


def test_keyring_without_the_master_key_is_logged(
    local: Path, trail: None, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    publish(0)
    settings.KEYRING = RETIRED
    assert publish(1) is None
    assert "no audit checkpoint was published" in caplog.messages
    with pytest.raises(CommandError, match="could not be read"):
        verified()


def test_rotation_of_the_master_key_keeps_the_signing_key(
    local: Path, trail: None, acme: Tenant, now: datetime, settings: Settings
) -> None:
    publish(0)
    before = verified("--public-key")
    settings.KEYRING = ROTATED
    call_command("rotate_keys", stdout=StringIO())
    settings.KEYRING = RETIRED
    assert Key.objects.get(purpose="audit").kek_id == "test-2027"
    assert verified("--public-key") == before
    assert publish(1) is not None  # the rotation is on the platform's record
    assert "intact" in verified("--all")


# --- Damage to the trail. The triggers are gone: that is what the owner of a database can do ---


Inflict = Callable[[Any], object]


def hash_again(events: Any) -> None:
    """The whole chain after an edit of its second event, head and all, as a forger would who knows the format."""
    last = audit.GENESIS
    for event in events:
        event.prev_hash = last
        rewrite(event, **({"actor": "nobody"} if event.seq == 2 else {})).save()
        last = event.hash
    AuditHead.objects.filter(chain=events[0].chain).update(hash=last)


def cut_tail(events: Any) -> None:
    """And the head set back to the event that is last now."""
    events.filter(seq__gt=2).delete()
    last = events.get(seq=2)
    AuditHead.objects.filter(chain=last.chain).update(seq=2, hash=last.hash)


def delete_chain(events: Any) -> None:
    AuditHead.objects.filter(chain=events[0].chain).delete()
    events.delete()


def delete_second(events: Any) -> None:
    events.filter(seq=2).delete()


def swap(events: Any) -> None:
    events.filter(seq=2).update(seq=99)
    events.filter(seq=3).update(seq=2)
    events.filter(seq=99).update(seq=3)


DAMAGES: dict[str, tuple[Inflict, int, str, bool]] = {
    "edited row": (lambda events: events.filter(seq=2).update(actor="nobody"), 2, "differs from its body in actor", True),
    "middle row deleted": (delete_second, 2, "gap: the next event has number 3", True),
    "rows reordered": (swap, 2, "does not follow the event before it", True),
    "tail cut, head set back": (cut_tail, 4, "was signed in .strongroom/audit/2026-11-21T1200Z.json", False),
    "chain deleted": (delete_chain, 4, "was signed in .strongroom/audit/2026-11-21T1200Z.json", False),
    "hashed again": (hash_again, 4, "is not the event that was signed in .strongroom/audit/2026-11-21T1200Z.json", False),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_audit_names_the_first_bad_event_of_the_chain(
    vault: ObjectStore, trail: None, acme: Tenant, globex: Tenant, name: str
) -> None:
    inflict, seq, problem, is_told_by_the_chain = DAMAGES[name]
    publish(0)
    triggers.remove(connection)
    inflict(AuditEvent.objects.filter(chain=acme.pk).order_by("seq"))
    assert bool(list(audit.verify())) == is_told_by_the_chain
    (line,) = damaged()
    event = AuditEvent.objects.filter(chain=acme.pk, seq=seq).first() if not problem.startswith("gap") else None
    assert line == f"chain {acme.pk}: event {seq} {event.pk if event else '(missing)'}: {problem}"
    assert damaged("--all") == damaged("--chain", str(acme.pk)) == [line]
    assert "intact: 1 chains" in verified("--chain", str(globex.pk))


@pytest.mark.parametrize("inflict", [cut_tail, delete_chain, hash_again])
def test_later_checkpoints_do_not_bury_the_damage(
    local: Path, trail: None, acme: Tenant, globex: Tenant, now: datetime, inflict: Inflict, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there now is not signed in place of what was: the newest checkpoint still names it."""
    publish(0)
    triggers.remove(connection)
    inflict(AuditEvent.objects.filter(chain=acme.pk).order_by("seq"))
    append(globex, now)
    assert publish(1) is not None
    assert [record.__dict__["seq"] for record in caplog.records if record.message == "a signed audit event is missing"] == [4]
    (line,) = damaged()
    assert line.startswith(f"chain {acme.pk}: event 4 ")
    assert line.endswith("T1210Z.json")
    assert damaged("--all")[0].endswith("T1200Z.json")


def test_all_checkpoints_narrow_down_where_a_chain_was_hashed_again(local: Path, acme: Tenant, now: datetime) -> None:
    for number in range(4):
        append(acme, now)
        publish(number)
    triggers.remove(connection)
    hash_again(AuditEvent.objects.filter(chain=acme.pk).order_by("seq"))
    assert [line.split(": ")[1].split()[1] for line in damaged()] == ["4"]
    assert [line.split(": ")[1].split()[1] for line in damaged("--all")] == ["2"]


def test_verify_of_a_chain_that_never_was_says_so(local: Path, trail: None) -> None:
    publish(0)
    with pytest.raises(CommandError, match="There is no chain nonsense"):
        verified("--chain", "nonsense")


# --- Damage to the checkpoints ---


@pytest.fixture
def three(vault: ObjectStore, acme: Tenant, now: datetime) -> list[str]:
    """The keys of three checkpoints."""
    made = []
    for number in range(3):
        append(acme, now)
        made.append(publish(number) or "")
    assert verified("--all").startswith("Checkpoints: 3 since")
    return made


def erase(store: ObjectStore, key: str) -> None:
    assert store.erase(list(store.entries(key))) == []


def replace(store: ObjectStore, key: str, content: bytes) -> None:
    erase(store, key)
    writer = store.create(key, size=len(content))
    writer.write(content)
    writer.commit()


def signed(document: dict[str, Any], seed: bytes) -> bytes:
    publication = signing.canonical_json(document["publication"])
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(b"strongroom/audit-heads/v1\n" + publication)
    return signing.canonical_json({**document, "signature": base64.b64encode(signature).decode()})


def edited(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**document, "publication": {**document["publication"], **changes}}


@on_every_store
def test_checkpoint_deleted_from_the_middle_is_missed_by_the_next(vault: ObjectStore, three: list[str]) -> None:
    erase(vault, three[1])
    assert "intact" in verified()  # the newest alone does not tell
    assert damaged("--all") == [f"checkpoint {three[1]}: is missing; {three[2]} follows it"]


@pytest.mark.parametrize("place", [1, 2])
def test_checkpoint_that_was_edited_is_damage(vault: ObjectStore, three: list[str], place: int) -> None:
    document = read(vault, three[place])
    replace(vault, three[place], signing.canonical_json(edited(document, heads={})))
    line = f"checkpoint {three[place]}: was edited, or was not signed by this deployment's key"
    assert damaged("--all") == [line]
    if place == 2:
        assert damaged() == [line]  # and the trail is checked against the one before it


def test_checkpoint_signed_with_another_key_is_damage(vault: ObjectStore, three: list[str]) -> None:
    replace(vault, three[2], signed(edited(read(vault, three[2]), heads={}), bytes(32)))
    assert damaged() == [f"checkpoint {three[2]}: was edited, or was not signed by this deployment's key"]


@on_every_store
def test_older_checkpoint_under_the_newest_name_is_damage(vault: ObjectStore, three: list[str]) -> None:
    """Whoever cuts the tail as well would otherwise have a signature for what is left."""
    replace(vault, three[2], signing.canonical_json(read(vault, three[0])))
    assert damaged() == [f"checkpoint {three[2]}: is another checkpoint with this object key"]


def test_checkpoint_in_place_of_one_that_another_follows_is_damage(vault: ObjectStore, three: list[str]) -> None:
    """By whoever had the key: its signature fits, and its digest does not."""
    seed = keys.unwrap(Key.objects.get(purpose="audit"))
    replace(vault, three[1], signed(edited(read(vault, three[1]), heads={}), seed))
    assert damaged("--all") == [f"checkpoint {three[1]}: is not the one that {three[2]} follows"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"publication":{}}', b"[" * 100_000, b"\xff", b'{"publication":{},"signature":7}']
)
def test_checkpoint_that_is_none_is_damage(local: Path, acme: Tenant, now: datetime, content: bytes) -> None:
    append(acme, now)
    key = publish(0)
    assert key
    replace(get_store("vault"), key, content)
    assert damaged() == [f"checkpoint {key}: is not a signed document of the kind 'publication'"]


def test_checkpoint_that_is_written_otherwise_is_damage(local: Path, acme: Tenant, now: datetime) -> None:
    append(acme, now)
    key = publish(0)
    assert key
    document = read(get_store("vault"), key)
    replace(get_store("vault"), key, json.dumps(document).encode())
    assert damaged() == [f"checkpoint {key}: was edited"]


def test_every_checkpoint_deleted_is_damage(vault: ObjectStore, three: list[str]) -> None:
    for key in three:
        erase(vault, key)
    (line,) = damaged()
    assert line.startswith("checkpoint (none): all are missing, although their key was created at ")


def test_checkpoints_without_their_key_are_damage(vault: ObjectStore, three: list[str]) -> None:
    Key.objects.all().delete()
    assert damaged() == [f"checkpoint {key}: cannot be verified: the database has no signing key" for key in three]


def test_damaged_newest_checkpoint_is_not_followed(vault: ObjectStore, three: list[str], acme: Tenant, now: datetime) -> None:
    """It would take the heads with it that a later one has to keep."""
    document = read(vault, three[2])
    replace(vault, three[2], signing.canonical_json(edited(document, heads={})))
    append(acme, now)
    key = publish(3)
    assert key
    previous = read(vault, key)["publication"]["previous"]
    assert previous["key"] == three[1]
    assert previous["sha256"] == sha256(signing.canonical_json(read(vault, three[1]))).hexdigest()


def test_checkpoint_deleted_in_a_bucket_with_versions_is_told_by_its_marker(
    settings: Settings, acme: Tenant, now: datetime
) -> None:
    endpoint = stores.moto()
    with stores.use_new_buckets(endpoint, settings) as buckets:
        endpoint.client.put_bucket_versioning(Bucket=buckets["vault"], VersioningConfiguration={"Status": "Enabled"})
        append(acme, now)
        key = publish(0)
        append(acme, now)
        last = publish(1)
        assert key
        assert last
        endpoint.client.delete_object(Bucket=buckets["vault"], Key=last)
        assert damaged() == [f"checkpoint {last}: was deleted; the bucket still has a version of it"]


# --- The worker ---


def test_beat_asks_for_a_checkpoint_every_ten_minutes() -> None:
    app.loader.import_default_modules()
    entry = app.conf.beat_schedule["audit checkpoint"]
    assert entry["task"] in app.tasks
    assert entry["schedule"].minute == {0, 10, 20, 30, 40, 50}


def test_what_the_application_keeps_for_itself_is_no_file(local: Path, trail: None, alice: User) -> None:
    """The sweep that is to come must leave `.strongroom/` alone; the clean-up that there is finds nothing to do with it."""
    tasks.publish_audit_checkpoint()
    tick()
    assert len(list(local.iterdir())) == 1
