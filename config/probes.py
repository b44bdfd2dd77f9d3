"""Whether this process lives, and whether it can do its work. For machines: no authentication, and no details to strangers."""

import logging
from collections.abc import Callable

from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponseBase, JsonResponse

from config import problems
from tenants.work import triggers
from vault import stores
from vault.keyring import keyring


log = logging.getLogger(__name__)


class Probes:
    """GET /healthz and /readyz. A middleware, because whoever probes a process asks its address, not one of ALLOWED_HOSTS."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        probe = {"/healthz": healthz, "/readyz": readyz}.get(request.path)
        if probe is None:
            return self.get_response(request)
        if request.method in {"GET", "HEAD"}:
            response = probe()
        else:
            response = problems.respond(405, name="method_not_allowed", detail="Ask with GET or HEAD.")
            response["Allow"] = "GET, HEAD"
        response["Cache-Control"] = "no-store"
        return response


def healthz() -> HttpResponseBase:
    return JsonResponse({"status": "ok"})


def readyz() -> HttpResponseBase:
    """503 names the part that does not work; the log says why."""
    checks = {"database": _database, "guards": _guards, "storage": stores.check, "keyring": keyring}
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = "ok"
        except Exception as error:  # whatever it is, it is the answer
            log.warning("not ready", extra={"check": name, "error": f"{type(error).__name__}: {error}"[:300]})
            results[name] = "failed"
    is_ready = set(results.values()) == {"ok"}
    return JsonResponse({"status": "ok" if is_ready else "unavailable", "checks": results}, status=200 if is_ready else 503)


def _database() -> None:
    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise DatabaseError("migrations are missing")


def _guards() -> None:
    if missing := triggers.missing(connection):
        raise DatabaseError(f"triggers are missing: {', '.join(missing)}")
