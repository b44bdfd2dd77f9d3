from django.apps import AppConfig


class PurgeConfig(AppConfig):
    name = "purge"
    verbose_name = "Purge"

    def ready(self) -> None:
        from purge import guards  # noqa: F401  registers what the database refuses
