"""System checks of settings that depend on each other or on code of the apps."""

from typing import Any

from django.conf import settings
from django.core.checks import Error, register

from vault.models import Cipher


@register
def files_settings(**_: Any) -> list[Error]:
    found = []
    if settings.FILES_DEFAULT_CIPHER not in Cipher.values:
        found.append(Error("FILES_DEFAULT_CIPHER is unknown.", hint=f"Use one of {', '.join(Cipher.values)}.", id="files.E001"))
    if settings.FILES_MAX_TRANSFERS >= settings.WEB_THREADS:
        found.append(
            Error("FILES_MAX_TRANSFERS leaves no thread for the API.", hint="Set it lower than WEB_THREADS.", id="files.E002")
        )
    return found
