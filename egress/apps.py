from django.apps import AppConfig


class EgressConfig(AppConfig):
    name = "egress"
    verbose_name = "Egress"

    def ready(self) -> None:
        # These modules register their triggers, mails and the handler of download links when they are imported.
        from egress import downloads, notifications, triggers  # noqa: F401
