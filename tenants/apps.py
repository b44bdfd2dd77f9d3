from collections.abc import Sequence

from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps
from django.db import connections
from django.db.models.signals import post_migrate, pre_migrate

from tenants.work import triggers


def remove_cross_table_guards(*, using: str, plan: Sequence[object], **_: object) -> None:
    """Removes triggers that read another table, because a migration cannot rebuild or drop a table that a trigger reads."""
    if plan:
        triggers.remove(connections[using], [guard for guard in triggers.guards if guard.also_reads])


def install_guards(*, using: str, **_: object) -> None:
    triggers.install(connections[using])


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        # Importing these modules registers their mails, the authentication scheme of drf-spectacular, and the guards.
        from tenants import people  # noqa: F401
        from tenants.audit import triggers as _  # noqa: F401
        from tenants.auth import openapi, passwords  # noqa: F401

        pre_migrate.connect(remove_cross_table_guards, sender=self)
        post_migrate.connect(install_guards, sender=self)


class AdminConfig(admin_apps.AdminConfig):
    default = False  # "tenants" in INSTALLED_APPS means TenantsConfig
    default_site = "tenants.admin_site.Site"
