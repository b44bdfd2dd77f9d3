"""Keyrings around a rotation: the one of tests.settings, then with a new active key behind it, then without the old one."""

import base64

from django.conf import settings


OLD = settings.KEYRING
NEW = "test-2027 " + base64.b64encode(b"n" * 32).decode()
ROTATED = f"{OLD}\n{NEW}\n"
RETIRED = NEW
