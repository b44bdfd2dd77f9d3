from django.apps import AppConfig


class PurgeConfig(AppConfig):
    name = "purge"
    verbose_name = "Purge"

    def ready(self) -> None:
        from purge import expiry_warnings, triggers  # noqa: F401  registers mails and triggers
