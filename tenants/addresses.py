from django.conf import settings
from django.urls import reverse
from rest_framework.request import Request


def absolute_url(request: Request, name: str, **kwargs: str) -> str:
    path = reverse(name, kwargs=kwargs)
    return f"{settings.PUBLIC_URL}{path}" if settings.PUBLIC_URL else request.build_absolute_uri(path)
