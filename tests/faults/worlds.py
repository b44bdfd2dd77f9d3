"""Worlds for fault tests, built once in a run."""

from tests.clients import Clients
from tests.factories import make_member, make_tenant
from tests.services import purging


def november() -> str:
    """Creates a collection of alice with three files, one of them shared with bob. Returns the id of the collection."""
    acme = make_tenant("acme")
    people = {"alice": make_member(acme, "alice", "admin"), "bob": make_member(acme, "bob", "member")}
    return purging.fill(Clients(people)["alice"]).slug
