from collections.abc import Sequence

from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps
from django.db import connections
from django.db.models.signals import post_migrate, pre_migrate

from tenants.work import triggers


def lift_guards(*, using: str, plan: Sequence[object], **_: object) -> None:
    """A table cannot be rebuilt, nor be gone, while the guard of another one asks it."""
    if plan:
        triggers.remove(connections[using], [guard for guard in triggers.guards if guard.asks])


def install_guards(*, using: str, **_: object) -> None:
    triggers.install(connections[using])


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        # Once they are imported, the outbox knows their letters, drf-spectacular the scheme, and `triggers` the guards.
        from tenants import people  # noqa: F401
        from tenants.audit import triggers as _  # noqa: F401
        from tenants.auth import openapi, passwords  # noqa: F401

        pre_migrate.connect(lift_guards, sender=self)
        post_migrate.connect(install_guards, sender=self)


class AdminConfig(admin_apps.AdminConfig):
    default = False  # not what INSTALLED_APPS means by "tenants"
    default_site = "tenants.admin_site.Site"
