"""The deployment files agree with the code: containers, process types, lock files, CI."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import gunicorn
import pytest
import yaml
from django.core.management import get_commands
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "strongroom"}
PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
READ_BY_BOTO3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}
SECRET = re.compile(r"SECRET|PASSWORD|KEYRING|SIGNING_KEY")


def settings_names() -> set[str]:
    """Returns the environment variables that config/settings.py reads."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / "config" / "settings.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "env":
            assert isinstance(node.args[0], ast.Constant)
            names.add(str(node.args[0].value))
    return names


def locked(name: str) -> dict[str, str]:
    """Maps each package in a lock file to its version and hashes."""
    entries = re.findall(r"^([\w.\-]+)==(\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): f"{version} {hashes}" for package, version, hashes in entries}


@pytest.mark.parametrize("service", OURS)
def test_compose_sets_only_settings_that_exist(service: str) -> None:
    assert OURS[service]["environment"].keys() - READ_BY_BOTO3 <= settings_names()


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_compose_has_no_default_secret(service: str) -> None:
    for name, value in COMPOSE["services"][service].get("environment", {}).items():
        if SECRET.search(name):
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
        assert all(SECRET.search(used) is None for used in re.findall(r"\$\{(\w+):?-", value)), name


def test_compose_sets_every_secret_of_the_settings() -> None:
    source = (ROOT / "config" / "settings.py").read_text()
    wanted = set(re.findall(r'env\.secret\("(\w+)"', source))
    assert wanted
    for service in OURS.values():
        assert wanted <= service["environment"].keys()


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_compose_pins_third_party_images(service: str) -> None:
    definition = COMPOSE["services"][service]
    assert definition.get("build") == "." or re.search(r":\d+\.\d+", definition["image"])


def test_compose_stop_grace_period_exceeds_the_drain_time() -> None:
    web = OURS["web"]
    assert int(web["stop_grace_period"].removesuffix("m")) * 60 > int(web["environment"]["WEB_DRAIN_SECONDS"])


@pytest.mark.parametrize("port", [port for service in COMPOSE["services"].values() for port in service.get("ports", [])])
def test_compose_publishes_ports_on_loopback_only(port: str) -> None:
    assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("command", sorted({*PROCFILE.values(), *(s["command"] for s in OURS.values() if "command" in s)}))
def test_process_type_command_exists(command: str) -> None:
    match command.split():
        case ["python", "manage.py", name]:
            assert name in get_commands()
        case ["gunicorn", "--config", config, "config.wsgi"]:
            assert (ROOT / config).is_file()
        case ["celery", "--app", "config.celery", "worker" | "beat", *_]:
            pass
        case _:
            pytest.fail(command)


def test_image_contains_every_package_and_runs_unprivileged() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench"}
    assert packages <= set(re.findall(r"^COPY (\w+) \1$", dockerfile, re.MULTILINE))
    assert {f"!{package}" for package in packages} <= set((ROOT / ".dockerignore").read_text().splitlines())
    assert "--require-hashes" in dockerfile
    stages = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]
    assert all(re.search(r"pip uninstall --yes .*\bsetuptools pip\b", stage) for stage in stages)
    assert re.findall(r"^USER (\w+)$", dockerfile, re.MULTILINE)[-1] == "strongroom"


def test_gunicorn_settings_suit_long_streams() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.conf.py", "--print-config", "config.wsgi"],
        cwd=ROOT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        check=True,
    ).stdout.decode()
    config = dict(re.findall(r"^(\w+)\s+= (.*)$", printed, re.MULTILINE))
    assert config["control_socket_disable"] == "True"
    assert config["max_requests"] == "0"
    assert config["accesslog"] == "None"
    assert int(config["graceful_timeout"]) >= 600


def test_gunicorn_is_pinned_exactly_while_the_worker_overrides_its_internals() -> None:
    """config/worker.py overrides undocumented methods of gunicorn, so a new release requires a review."""
    source = (ROOT / "config" / "worker.py").read_text()
    assert "from gunicorn.workers.gthread import" in source
    (requirement,) = [
        found
        for found in map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
        if found.name == "gunicorn"
    ]
    assert str(requirement.specifier) == f"=={gunicorn.__version__}"


def test_development_lock_includes_the_runtime_lock() -> None:
    runtime, development = locked("requirements.lock"), locked("requirements-dev.lock")
    assert runtime
    assert runtime.items() <= development.items()


def test_locks_satisfy_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {
        "requirements.lock": project["project"]["dependencies"],
        "requirements-dev.lock": project["dependency-groups"]["dev"],
    }
    for name, requirements in asked.items():
        lock = locked(name)
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)].split()[0]), requirement


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_has_no_index_and_every_package_has_hashes(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert len(locked(name)) == len(re.findall(r"^[\w.\-]+==", text, re.MULTILINE))


def test_ci_runs_the_documented_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^ *bin/check$", script, re.MULTILINE)
    assert re.search(r"^ *bin/test\b", script, re.MULTILINE)
