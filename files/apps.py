from django.apps import AppConfig


class FilesConfig(AppConfig):
    name = "files"
    verbose_name = "Files"

    def ready(self) -> None:
        from files import checks, triggers  # noqa: F401  registers the system checks and the triggers
