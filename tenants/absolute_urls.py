from typing import Final
from urllib.parse import quote

from django.conf import settings
from django.urls import reverse
from rest_framework.request import Request


UNQUOTED: Final = "!$&'()*+,;=:@~"  # RFC 3986, section 3.3: what a segment may hold as it is


def absolute_url(request: Request, name: str, **kwargs: str) -> str:
    path = reverse(name, kwargs=kwargs)
    return f"{settings.PUBLIC_URL}{path}" if settings.PUBLIC_URL else request.build_absolute_uri(path)


def quoted(segment: str) -> str:
    """A segment of a path as `reverse` writes it, at a tenth of the time: lists have hundreds."""
    return quote(segment, safe=UNQUOTED)
