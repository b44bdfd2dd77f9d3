"""System checks of what the settings alone cannot say."""

from typing import Any

from django.conf import settings
from django.core.checks import Error, register

from vault.keyring import keyring
from vault.models import Cipher


@register
def files_settings(**_: Any) -> list[Error]:
    found = []
    if settings.FILES_DEFAULT_CIPHER not in Cipher.values:
        found.append(Error("FILES_DEFAULT_CIPHER is unknown.", hint=f"Use one of {', '.join(Cipher.values)}.", id="files.E001"))
    if settings.FILES_MAX_TRANSFERS >= settings.WEB_THREADS:
        found.append(
            Error("FILES_MAX_TRANSFERS leaves no thread for the API.", hint="Keep it below WEB_THREADS.", id="files.E002")
        )
    if settings.S3_CHECKSUMS not in {"when_required", "when_supported"}:
        found.append(Error("S3_CHECKSUMS is unknown.", hint="Use when_required or when_supported.", id="files.E003"))
    if settings.S3_RELEASE_SSE not in {"AES256", "aws:kms", "none"}:
        found.append(Error("S3_RELEASE_SSE is unknown.", hint="Use AES256, aws:kms or none.", id="files.E005"))
    try:
        keyring()
    except ValueError as error:
        found.append(Error(str(error), hint="One `name base64(32 bytes)` a line; the last is active.", id="files.E004"))
    return found
