"""bin/venv.sh, which every command of the README uses. The packages of these tests are in the checkout; pip uses no index."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.live.child_process import killed_with_parent


pytestmark = pytest.mark.server  # times out beside other tests
ROOT = Path(__file__).resolve().parents[2]


def make_checkout(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "bin" / "venv.sh", folder / "bin")
    for name in ("requirements.lock", "requirements-dev.lock"):
        (folder / name).write_text(f"# {name}\n")
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path)


def start(checkout: Path, lock: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        killed_with_parent("sh", "-euc", f"cd {shlex.quote(str(checkout))}; . bin/venv.sh; need_venv {lock}"),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "."} | environment,
        stderr=subprocess.PIPE,
    )


def need_venv(checkout: Path, lock: str = "requirements.lock", **environment: str) -> tuple[int, str]:
    process = start(checkout, lock, **environment)
    _, stderr = process.communicate(timeout=100)
    return process.returncode, stderr.decode()


def lock_of(checkout: Path, *names: str) -> str:
    """Returns a lock for empty packages, and writes their wheels into the checkout."""
    lines = []
    for name in names:
        wheel, info = checkout / f"{name}-999-py3-none-any.whl", f"{name}-999.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 999\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        lines.append(f"{name}==999 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return "".join(lines)


def installed(checkout: Path) -> dict[str, str]:
    """Maps the name of every package in .venv to its version."""
    script = "from importlib.metadata import distributions\nfor each in distributions(): print(each.name, each.version)"
    listed = subprocess.run([checkout / ".venv/bin/python", "-c", script], capture_output=True, text=True, check=True)
    return dict(line.split() for line in listed.stdout.splitlines())


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]]]:
    """A checkout after a kill during the replacement of an outdated .venv, and the results of the next two commands."""
    folder = make_checkout(tmp_path_factory.mktemp("made") / "checkout")
    (folder / ".venv" / "leftover").mkdir(parents=True)
    (folder / ".venv" / "locks").write_text("another\n")
    (folder / "requirements.lock").write_text(lock_of(folder, "thing"))
    killed = start(folder, "requirements.lock")
    while (folder / ".venv" / "locks").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    both = [start(folder, "requirements.lock") for _ in range(2)]
    said = [process.communicate(timeout=100)[1].decode() for process in both]
    return folder, [(process.returncode, text) for process, text in zip(both, said, strict=True)]


def test_outdated_venv_is_replaced_once_after_an_interruption(made: tuple[Path, list[tuple[int, str]]]) -> None:
    checkout, answers = made
    assert [code for code, _ in answers] == [0, 0]
    assert sorted(text.count("into .venv") for _, text in answers) == [0, 1]
    assert not (checkout / ".venv" / "leftover").exists()
    assert installed(checkout) == {"thing": "999"}
    assert not list((checkout / ".venv/bin").glob("pip*"))
    assert need_venv(checkout) == (0, "")


def test_development_lock_is_added_with_its_installer(made: tuple[Path, list[tuple[int, str]]], tmp_path: Path) -> None:
    """Existing files stay, because a server may be using them."""
    checkout = tmp_path / "checkout"
    shutil.copytree(made[0], checkout, symlinks=True)
    (checkout / ".venv" / "in-use").touch()
    (checkout / "requirements-dev.lock").write_text(lock_of(checkout, "thing", "other", "setuptools"))
    assert "requirements-dev.lock" in need_venv(checkout, "requirements-dev.lock")[1]
    assert (checkout / ".venv" / "in-use").exists()
    assert installed(checkout) == {"thing": "999", "other": "999", "setuptools": "999"}
    assert need_venv(checkout) == need_venv(checkout, "requirements-dev.lock") == (0, "")


def test_only_the_development_lock_contains_pip() -> None:
    runtime, development = ((ROOT / name).read_text() for name in ("requirements.lock", "requirements-dev.lock"))
    assert "\npip==" in development
    assert "\npip==" not in runtime
    assert "\nsetuptools==" not in runtime + development


def test_python_without_venv_prints_the_package_to_install(checkout: Path, tmp_path: Path) -> None:
    python = program(tmp_path / "python", f'case "$*" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"')
    code, stderr = need_venv(checkout, PYTHON=python)
    assert code == 1
    assert "apt-get install python3-venv" in stderr


def test_old_python_prints_the_required_version(checkout: Path, tmp_path: Path) -> None:
    code, stderr = need_venv(checkout, PYTHON=program(tmp_path / "python", "exit 1"))
    assert code == 1
    assert "Python 3.11 or newer" in stderr


# --- Separate tests of each case ---


@pytest.mark.long
def test_venv_is_created_once_and_replaced_for_another_lock(checkout: Path) -> None:
    assert "into .venv" in need_venv(checkout)[1]
    assert need_venv(checkout) == (0, "")
    (checkout / ".venv" / "leftover").touch()
    (checkout / "requirements.lock").write_text("# another\n")
    assert "into .venv" in need_venv(checkout)[1]
    assert not (checkout / ".venv" / "leftover").exists()
    assert need_venv(checkout) == (0, "")


@pytest.mark.long
def test_development_lock_is_added_to_a_venv_in_use(checkout: Path) -> None:
    need_venv(checkout)
    (checkout / ".venv" / "in-use").touch()
    assert "requirements-dev.lock" in need_venv(checkout, "requirements-dev.lock")[1]
    assert (checkout / ".venv" / "in-use").exists()
    assert need_venv(checkout) == need_venv(checkout, "requirements-dev.lock") == (0, "")


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_interrupted_installation_is_repeated(checkout: Path, seconds: float) -> None:
    (checkout / "requirements.lock").write_text(lock_of(checkout, "thing"))
    process = start(checkout, "requirements.lock")
    time.sleep(seconds)
    process.kill()
    process.communicate()
    assert need_venv(checkout)[0] == 0
    assert need_venv(checkout) == (0, "")
    assert installed(checkout) == {"thing": "999"}


@pytest.mark.long
def test_venv_contains_the_lock_and_no_installer(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text(lock_of(checkout, "thing"))
    (checkout / "requirements-dev.lock").write_text(lock_of(checkout, "thing", "other"))
    need_venv(checkout)
    assert installed(checkout) == {"thing": "999"}
    assert not list((checkout / ".venv/bin").glob("pip*"))
    need_venv(checkout, "requirements-dev.lock")
    assert installed(checkout) == {"thing": "999", "other": "999"}


@pytest.mark.long
def test_venv_keeps_an_installer_in_the_lock(checkout: Path) -> None:
    """pip-audit needs pip. The locked version replaces the one that Python bundles."""
    (checkout / "requirements.lock").write_text(lock_of(checkout, "setuptools"))
    need_venv(checkout)
    assert installed(checkout) == {"setuptools": "999"}


@pytest.mark.long
def test_parallel_commands_create_the_venv_once(checkout: Path) -> None:
    both = [start(checkout, "requirements.lock") for _ in range(2)]
    said = sorted(process.communicate(timeout=100)[1].count(b"into .venv") for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said == [0, 1]
