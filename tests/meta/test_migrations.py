"""What a migration may do: processes of the previous release run until they are replaced (F-37; docs/operations/install.md)."""

from typing import Final

import pytest
from django.db import models
from django.db.migrations import (
    AddField,
    AddIndex,
    AlterModelOptions,
    CreateModel,
    DeleteModel,
    RemoveField,
    RemoveIndex,
    RenameField,
    RunPython,
    RunSQL,
)
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import AddConstraint, AlterField
from django.db.migrations.operations.base import Operation


pytestmark = pytest.mark.both_databases
# Before the first release there was none to leave working. When one is made, its migrations are added here.
RELEASED: Final = {
    "egress": "0001_initial",
    "files": "0001_initial",
    "purge": "0001_initial",
    "tenants": "0001_initial",
    "vault": "0001_initial",
}

# Migration, and why the processes of the release before it go on all the same, although an operation of it looks as if not.
EXPLAINED: Final[dict[tuple[str, str], str]] = {}


def trouble(operation: Operation) -> str:
    """What the release before it has to fear; empty if nothing."""
    match operation:
        case RemoveField() | DeleteModel() | RenameField():
            return "it reads and writes what is gone"
        case AddField(field=field) if not (field.null or field.has_db_default() or field.many_to_many):
            return "its rows lack the value: null=True or db_default"
        case AddField() | CreateModel() | AddIndex() | RemoveIndex() | AlterModelOptions():  # slower at worst
            return ""
    return "to be thought about"


def test_new_migrations_leave_the_release_before_them_working() -> None:
    graph = MigrationLoader(None).graph
    released = {node for leaf in RELEASED.items() for node in graph.forwards_plan(leaf)}
    new = [node for node in graph.nodes if node[0] in RELEASED and node not in released | EXPLAINED.keys()]
    found = {node: [trouble(operation) for operation in graph.nodes[node].operations] for node in new}
    assert not {node: reasons for node, reasons in found.items() if any(reasons)}
    assert EXPLAINED.keys() <= graph.nodes.keys()


NUMBER: Final = models.IntegerField


def test_what_the_release_before_would_break_on() -> None:
    for operation in [
        RemoveField("file", "length"),
        DeleteModel("file"),
        RenameField("file", "length", "size"),
        AddField("file", "length", NUMBER()),
        AddField("file", "length", NUMBER(default=3)),
        AlterField("file", "length", models.TextField()),
        AddConstraint("file", models.UniqueConstraint("length", name="one")),
        RunSQL("DROP TABLE file"),
        RunPython(RunPython.noop),
    ]:
        assert trouble(operation), operation.describe()


def test_what_the_release_before_does_not_notice() -> None:
    for operation in [
        AddField("file", "length", NUMBER(null=True)),
        AddField("file", "length", NUMBER(db_default=3)),
        AddIndex("file", models.Index("length", name="by_length")),
        RemoveIndex("file", "by_length"),
        AlterModelOptions("file", {"verbose_name": "paper"}),
        CreateModel("file", [("id", models.AutoField(primary_key=True))]),
    ]:
        assert not trouble(operation), operation.describe()
