"""bin/sbom and bin/audit, run on the lock of this checkout and the packages of this interpreter."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name


ROOT = Path(__file__).resolve().parents[2]
FINDING = "echo 'multipart 2.0.1 GHSA-0000'; echo 'Found 1 known vulnerability' >&2; exit 1"
NO_NETWORK = "echo 'requests.exceptions.ConnectionError: no route to host' >&2; exit 1"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the scripts and locks, and this interpreter as its .venv, so that nothing is installed."""
    for name in ("bin/sbom", "bin/audit", "bin/venv.sh", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    use_as_python(tmp_path, "")
    locks = subprocess.run(["sha256sum", "requirements-dev.lock"], cwd=tmp_path, capture_output=True, check=True)
    (tmp_path / ".venv" / "locks").write_bytes(locks.stdout)
    return tmp_path


def use_as_python(checkout: Path, audit: str) -> None:
    """Installs a wrapper of this interpreter as the .venv. `audit` is a shell command that replaces pip-audit."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    replaced = f'case "$*" in *pip_audit*) {audit};; esac\n' if audit else ""
    python.write_text(f'#!/bin/sh\n{replaced}exec {sys.executable} "$@"\n')
    python.chmod(0o755)


def run(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=checkout, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=110
    )


def test_sbom_lists_exactly_the_runtime_packages(checkout: Path) -> None:
    made = run(checkout, "bin/sbom", "--no-validate")
    assert made.returncode == 0, made.stderr
    bom = json.loads(made.stdout)
    assert bom["bomFormat"] == "CycloneDX"
    assert (bom["metadata"]["component"]["name"], bom["metadata"]["component"]["type"]) == ("strongroom", "application")
    listed = {(canonicalize_name(each["name"]), each["version"]) for each in bom["components"]}
    locked = re.findall(r"^([\w.-]+)==(\S+)", (checkout / "requirements.lock").read_text(), re.MULTILINE)
    assert listed == set(locked)
    purls = {each["purl"] for each in bom["components"]}
    assert f"pkg:pypi/django@{dict(locked)['django']}" in purls
    assert str(checkout) not in made.stdout


def test_sbom_of_an_outdated_environment_is_refused(checkout: Path) -> None:
    lock = checkout / "requirements.lock"
    lock.write_text(lock.read_text().replace("\ndjango==5", "\ndjango==4"))
    refused = run(checkout, "bin/sbom")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "requirements.lock names 4" in refused.stderr


@pytest.mark.parametrize(
    ("audit", "arguments", "status", "output"),
    [
        ("echo 'No known vulnerabilities found'; exit 0", [], 0, "No known vulnerabilities found\n"),
        (FINDING, [], 1, "multipart 2.0.1 GHSA-0000\n"),
        (FINDING, ["--required"], 1, "multipart 2.0.1 GHSA-0000\n"),
        (NO_NETWORK, [], 0, "bin/audit: skipped, because the advisory service cannot be reached\n"),
        (NO_NETWORK, ["--required"], 1, "bin/audit: skipped, because the advisory service cannot be reached\n"),
        ("echo 'Traceback: KeyError' >&2; exit 1", [], 1, ""),
    ],
    ids=["clean", "finding", "finding-required", "no-network", "no-network-required", "crash"],
)
def test_audit_fails_on_findings_and_is_skipped_without_a_network(
    checkout: Path, audit: str, arguments: list[str], status: int, output: str
) -> None:
    use_as_python(checkout, audit)
    done = run(checkout, "bin/audit", *arguments)
    assert (done.returncode, done.stdout) == (status, output)


def test_audit_with_the_real_scanner_is_skipped_without_a_network(checkout: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    done = run(
        checkout, "bin/audit", HTTPS_PROXY=nowhere, https_proxy=nowhere, NO_PROXY="", no_proxy="", XDG_CACHE_HOME=str(checkout)
    )
    assert (done.returncode, done.stdout) == (0, "bin/audit: skipped, because the advisory service cannot be reached\n")
    assert done.stderr == ""
