"""The project's settings with disposable secrets, so that `pytest` and `mypy` work in a checkout without an installation."""

import base64
import os
import tempfile


_home = tempfile.TemporaryDirectory(prefix="strongroom-test-")  # deleted when the process ends
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if os.environ.get("HOME_OF_WORKER", "") != _worker:  # a worker inherits its parent's environment, but needs its own home
    os.environ |= {"HOME_OF_WORKER": _worker, "STRONGROOM_HOME": _home.name}
os.environ.setdefault("STRONGROOM_HOME", _home.name)
os.environ.setdefault("SECRET_KEY", "test-" + "s" * 60)
os.environ.setdefault("JWT_SIGNING_KEY", "test-" + "j" * 60)
os.environ.setdefault("KEYRING", "test-2026 " + base64.b64encode(b"k" * 32).decode())
os.environ.setdefault("HTTPS", "0")
os.environ.setdefault("DATABASE_URL", os.environ.get("TEST_DATABASE_URL", ""))
if not os.environ["DATABASE_URL"]:
    del os.environ["DATABASE_URL"]

from config.settings import *  # noqa: E402, F403  the settings read the environment set above


PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # argon2 would dominate the duration of the suite

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):  # noqa: F405
    # A file, as in production: threads on one in-memory database fail immediately with "table is locked" instead of waiting.
    DATABASES["default"]["TEST"] = {"NAME": str(HOME / "test.sqlite3")}  # noqa: F405
STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # noqa: F405  whitenoise warns if it is missing
