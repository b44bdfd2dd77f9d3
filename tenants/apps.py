from typing import Any

from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps
from django.db import connections
from django.db.models.signals import post_migrate

from tenants import triggers


def install_triggers(*, using: str, **_: Any) -> None:
    connection = connections[using]
    # `migrate tenants zero` ends here too, without the table.
    if triggers.TABLE in connection.introspection.table_names():
        triggers.install(connection)


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        # Once they are imported, the outbox knows their letters, and drf-spectacular what schema describes.
        from tenants import passwords, people, schema  # noqa: F401

        post_migrate.connect(install_triggers, sender=self)


class AdminConfig(admin_apps.AdminConfig):
    default = False  # not what INSTALLED_APPS means by "tenants"
    default_site = "tenants.site.Site"
