"""The URL paths of the server, with their views and methods."""

import re
from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver


def patterns(resolver: URLResolver, prefix: str = "/") -> Iterator[tuple[str, URLPattern]]:
    for entry in resolver.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from patterns(entry, path)
        else:
            yield re.sub(r"<\w+:(\w+)>", r"{\1}", path), entry


def views() -> dict[str, Any]:
    """Maps each path outside the admin site to the class of its view."""
    return {
        path: getattr(pattern.callback, "cls", None) or pattern.callback.view_class  # type: ignore[attr-defined]
        for path, pattern in patterns(get_resolver())
        if not path.startswith("/admin/")
    }


def routes() -> dict[str, set[str]]:
    """Maps each path to the methods of its view."""
    return {
        path: {method.upper() for method in view.http_method_names if hasattr(view, method)} - {"OPTIONS"}
        for path, view in views().items()
    }
