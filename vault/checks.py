"""System checks of the keyring and of the options of the stores."""

from typing import Any

from django.conf import settings
from django.core.checks import Error, register

from vault.keyring import keyring


@register
def vault_settings(**_: Any) -> list[Error]:
    found = []
    try:
        keyring()
    except ValueError as error:
        found.append(Error(str(error), hint="One `name base64(32 bytes)` a line; the last is active.", id="vault.E001"))
    if settings.S3_CHECKSUMS not in {"when_required", "when_supported"}:
        found.append(Error("S3_CHECKSUMS is unknown.", hint="Use when_required or when_supported.", id="vault.E002"))
    if settings.S3_RELEASE_SSE not in {"AES256", "aws:kms", "none"}:
        found.append(Error("S3_RELEASE_SSE is unknown.", hint="Use AES256, aws:kms or none.", id="vault.E003"))
    return found
