"""The workflows in .github run existing commands within a time limit, and GitHub can parse the forms and update rules."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml


ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
STAGES = {"packages", "clone", "check", "gate", "servers", "long"}  # of .ci/run
MAX_JOB_MINUTES = 360  # GitHub's limit


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


JOBS = {f"{path.stem}-{name}": job for path in WORKFLOWS for name, job in load(path)["jobs"].items()}
OURS = [
    command.split(">")[0]
    for job in JOBS.values()
    for step in job["steps"]
    for command in step.get("run", "").split(" && ")
    if re.match(r"(bin|\.ci)/", command)
]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_a_trigger_and_read_only_permissions(path: Path) -> None:
    workflow: dict[Any, Any] = load(path)
    assert workflow["name"] == path.stem
    assert workflow[True]  # YAML parses the key `on` as a boolean
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_job_has_a_time_limit_and_pinned_actions(job: dict[str, Any]) -> None:
    assert 0 < job["timeout-minutes"] <= MAX_JOB_MINUTES
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


@pytest.mark.parametrize("command", OURS)
def test_command_of_a_workflow_exists(command: str) -> None:
    script, *arguments = shlex.split(command)
    assert os.access(ROOT / script, os.X_OK)
    if script == ".ci/run":
        assert arguments
        assert set(arguments) <= STAGES


def test_workflows_run_every_stage() -> None:
    named = {stage for command in OURS if command.startswith(".ci/run") for stage in command.split()[1:]}
    assert named == STAGES


def test_gate_runs_on_the_oldest_and_the_newest_python() -> None:
    assert load(ROOT / ".github/workflows/ci.yml")["jobs"]["gate"]["strategy"]["matrix"]["image"] == ["debian:12", "debian:13"]


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_form_is_complete(name: str) -> None:
    form = load(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert form.keys() >= {"name", "description", "body"}
    for field in form["body"]:
        assert field["type"] in {"markdown", "input", "textarea"}
        assert ("id" in field) == (field["type"] != "markdown")


def test_dependabot_covers_packages_and_actions() -> None:
    rules = load(ROOT / ".github" / "dependabot.yml")
    assert rules["version"] == 2
    assert {rule["package-ecosystem"] for rule in rules["updates"]} == {"pip", "github-actions"}


def test_commit_hooks_are_local() -> None:
    hooks = load(ROOT / ".pre-commit-config.yaml")
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert all(hook["language"] == "system" for hook in hooks["repos"][0]["hooks"])
