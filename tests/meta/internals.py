"""What no answer may hold, whoever asked (INV-17): a stack, a query, a key, a bucket or a path of this machine."""

import re

from django.conf import settings


INSIDES = re.compile(
    rb"Traceback|site-packages|\.py\b|object at 0x|\b(?:sqlite|psycopg|IntegrityError|OperationalError)"
    rb"|\b(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|PRAGMA|SAVEPOINT) "
    rb"|\b(?:files_(?:storedfile|collection|erasure)|tenants_(?:tenant|user|membership))\b"
    rb"|\b[0-9a-f]{4}/[0-9a-f]{8}-[0-9a-f-]{27}/"  # an object key
)
PLACES = [str(place).encode() for place in (settings.BASE_DIR, settings.HOME)]


def exposed_internals(answer: bytes) -> list[bytes]:
    """What of the server shows in the headers and body of an answer."""
    return [*INSIDES.findall(answer), *(place for place in PLACES if place in answer)]
