from typing import Final
from urllib.parse import quote

from django.conf import settings
from django.urls import reverse
from rest_framework.request import Request


UNQUOTED: Final = "!$&'()*+,;=:@~"  # characters that a path segment may contain unescaped (RFC 3986, section 3.3)


def absolute_url(request: Request, name: str, **kwargs: str) -> str:
    path = reverse(name, kwargs=kwargs)
    return f"{settings.PUBLIC_URL}{path}" if settings.PUBLIC_URL else request.build_absolute_uri(path)


def quote_segment(segment: str) -> str:
    """Quotes a path segment as `reverse` does, in a tenth of its time. Lists quote hundreds of segments."""
    return quote(segment, safe=UNQUOTED)
