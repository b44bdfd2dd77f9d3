"""Creates the secrets of a new installation. `bin/run` runs it before any command that reads the settings."""

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
    fcntl.flock(handle, fcntl.LOCK_EX)  # another bin/run can start at the same time
    if folder.is_dir():
        return
    if (home / "strongroom.sqlite3").exists():
        # New keys cannot decrypt the existing data. An operator who lost the secrets needs their backup.
        raise BadSetting("STRONGROOM_HOME", f"{home} has a database but no secrets. Restore {folder} from a backup.")
    draft = home / "secrets.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    for name, content in {
        "secret_key": secrets.token_urlsafe(48),
        "jwt_signing_key": secrets.token_urlsafe(48),
        "keyring": f"{datetime.now(UTC):%Y-%m-%d} {b64encode(secrets.token_bytes(32)).decode()}",
    }.items():
        write_private(draft / name, content)
    draft.rename(folder)  # atomic, so that a kill leaves all secrets or none
    os.fsync(handle)


def write_private(path: Path, content: str) -> None:
    """Creates a file that only its owner can read, and waits until it is on disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
