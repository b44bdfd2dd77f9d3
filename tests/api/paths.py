"""Addresses of the API, written out: the tests hold the server to them, so they do not ask it for them."""

from urllib.parse import quote


COLLECTIONS = "/api/v1/collections/"
FILES = "/api/v1/files/"
REQUESTS = "/api/v1/egress/requests/"


def collection(slug: str) -> str:
    return f"{COLLECTIONS}{slug}/"


def restore(slug: str) -> str:
    return f"{collection(slug)}restore/"


def files(slug: str) -> str:
    return f"{collection(slug)}files/"


def file(slug: str, filename: str) -> str:
    return f"{files(slug)}{quote(filename, safe='')}/"


def preview(slug: str, filename: str) -> str:
    return f"{file(slug, filename)}preview/"


def download(slug: str, filename: str) -> str:
    return f"{file(slug, filename)}download/"


def content(slug: str, filename: str) -> str:
    return f"{collection(slug)}content/{quote(filename, safe='')}"


def archive(slug: str) -> str:
    return f"{collection(slug)}archive.zip"


def archive_link(slug: str) -> str:
    return f"{collection(slug)}archive/"


def grants(slug: str) -> str:
    return f"{collection(slug)}grants/"


def holds(slug: str) -> str:
    return f"{collection(slug)}holds/"


def file_grants(slug: str, filename: str) -> str:
    return f"{file(slug, filename)}grants/"
