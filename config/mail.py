from pathlib import Path
from typing import Any

from django.core.mail.backends import filebased


class PrivateFiles(filebased.EmailBackend):
    """Mails as files, for an installation without a mail server. They carry tokens, so that the folder is its owner's alone."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Path(self.file_path).chmod(0o700)
