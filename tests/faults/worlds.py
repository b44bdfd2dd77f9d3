"""Worlds of tests in which something fails, made once in a run."""

from tests.clients import Clients
from tests.factories import make_member, make_tenant
from tests.services import purging


def november() -> str:
    """alice's collection of three files, one of which she has given to bob; its id."""
    acme = make_tenant("acme")
    people = {"alice": make_member(acme, "alice", "admin"), "bob": make_member(acme, "bob", "member")}
    return purging.fill(Clients(people)["alice"]).slug
