from django.apps import AppConfig


class EgressConfig(AppConfig):
    name = "egress"
    verbose_name = "Egress"

    def ready(self) -> None:
        # Once they are imported, triggers know the guards, the outbox the letters, and links how a package is fetched.
        from egress import downloads, notifications, triggers  # noqa: F401  for what they register
