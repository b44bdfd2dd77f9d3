from django.apps import AppConfig


class PurgeConfig(AppConfig):
    name = "purge"
    verbose_name = "Purge"

    def ready(self) -> None:
        # Once they are imported, the outbox knows their letters, and triggers the guards.
        from purge import expiry_warnings, triggers  # noqa: F401
