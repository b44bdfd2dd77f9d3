"""Creates rows for every page of the admin site.

`python -m tests.browser.world` sets up the installation in STRONGROOM_HOME.
"""

import os
from datetime import timedelta
from uuid import uuid4

import django
from django.core.management import call_command
from django.test import Client, override_settings
from django.test.utils import setup_test_environment
from django.utils import timezone


def make() -> None:
    # Models can be imported only after django.setup().
    from config import demo
    from egress.models import EgressPolicy
    from files.models import Collection, Grant, Hold, Level, PendingDeletion, Upload
    from tenants.people import invite
    from tests.factories import make_destruction, make_user
    from tests.services import egress_world

    now = timezone.now()
    call_command("prepare")
    demo.create(url="", now=now)
    # A fast hasher, because these users do not sign in.
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]):
        people = egress_world.make_world().people
    clerk = make_user("clerk")  # can sign in, but has no permission
    clerk.is_staff = True
    clerk.save()
    for username in ("hans", "greta"):
        Client().post("/admin/login/", {"username": username, "password": "wrong"}, REMOTE_ADDR="192.0.2.7")
    alice, bob, mallory = people["alice"], people["bob"], people["mallory"]
    collection = Collection.objects.filter(holds=None, kind=Collection.Kind.FILES).earliest("pk")
    acme = collection.tenant
    for address in ("dora@example.org", "erik@example.org"):
        invite(tenant=acme, email=address, roles=["member"], by=alice, now=now)
    Grant.objects.create(tenant=acme, collection=collection, user=mallory, level=Level.VIEWER, created_at=now, created_by=bob)
    Hold.objects.create(
        collection=collection, kind=Hold.Kind.LEGAL, ref="2026/117", reason="a suit", placed_at=now, placed_by=alice
    )
    times = {"started_at": now, "heartbeat_at": now}
    Upload.objects.create(store="vault", object_id=uuid4(), object_key="11/22", collection=collection, started_by=bob, **times)
    PendingDeletion.objects.create(store="vault", object_key="33/44", due_at=now + timedelta(hours=1), requested_at=now)
    EgressPolicy.objects.create(tenant=acme, contact_email="data-out@acme.example")
    make_destruction(acme, "October", started_by="alice")


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    setup_test_environment()  # adds the test client's host to ALLOWED_HOSTS
    make()
