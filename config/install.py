"""Creates the secrets of a new installation. `bin/run` calls it before anything reads the settings, which need them."""

import fcntl
import os
import secrets
import shutil
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

from config.env import BadSetting


def main() -> None:
    home = Path(os.environ["STRONGROOM_HOME"])
    folder = home / "secrets"
    if folder.is_dir():
        return
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    handle = os.open(home, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # against another first run
    if folder.is_dir():
        return
    if (home / "strongroom.sqlite3").exists():
        # New keys would open nothing of what is there. Whoever lost them wants their backup, not an installation that starts.
        raise BadSetting("STRONGROOM_HOME", f"{home} has a database and no secrets: put back the backup of {folder}")
    draft = home / "secrets.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    for name, content in {
        "secret_key": secrets.token_urlsafe(48),
        "jwt_signing_key": secrets.token_urlsafe(48),
        "keyring": f"{datetime.now(UTC):%Y-%m-%d} {b64encode(secrets.token_bytes(32)).decode()}",
    }.items():
        write_private(draft / name, content)
    draft.rename(folder)  # all of them or none, however the first run ends
    os.fsync(handle)


def write_private(path: Path, content: str) -> None:
    """A new file that only its owner reads, on the disk when this returns."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
