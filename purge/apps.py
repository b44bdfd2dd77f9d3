from django.apps import AppConfig


class PurgeConfig(AppConfig):
    name = "purge"
    verbose_name = "Purge"

    def ready(self) -> None:
        from purge import announcing  # noqa: F401  once it is imported, the outbox knows its letters
