"""Detects internals that no response may expose (INV-17): a stack trace, a query, an object key, or a path of this machine."""

import re

from django.conf import settings


INTERNALS = re.compile(
    rb"Traceback|site-packages|\.py\b|object at 0x|\b(?:sqlite|psycopg|IntegrityError|OperationalError)"
    rb"|\b(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|PRAGMA|SAVEPOINT) "
    rb"|\b(?:files_(?:storedfile|collection|pendingdeletion)|tenants_(?:tenant|user|membership))\b"
    rb"|\b[0-9a-f]{4}/[0-9a-f]{8}-[0-9a-f-]{27}/"  # an object key
)
PATHS = [str(path).encode() for path in (settings.BASE_DIR, settings.HOME)]


def exposed_internals(response: bytes) -> list[bytes]:
    """Returns the internals of the server that a response (headers and body) exposes."""
    return [*INTERNALS.findall(response), *(path for path in PATHS if path in response)]
