"""Health checks of this process: alive and ready. They need no authentication and show no details."""

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
    """Serves GET /healthz and /readyz. It is a middleware, because probes use the address of the process as the Host."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        probe = {"/healthz": healthz, "/readyz": readyz}.get(request.path)
        if probe is None:
            return self.get_response(request)
        if request.method in {"GET", "HEAD"}:
            response = probe()
        else:
            response = problems.respond(405, name="method_not_allowed", detail="Use GET or HEAD.")
            response["Allow"] = "GET, HEAD"
        response["Cache-Control"] = "no-store"
        return response


def healthz() -> HttpResponseBase:
    return JsonResponse({"status": "ok"})


def readyz() -> HttpResponseBase:
    """Responds with 503 if a check fails. The response names the check, and the log has the error."""
    checks = {"database": _database, "guards": _guards, "storage": stores.check, "keyring": keyring}
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = "ok"
        except Exception as error:  # any error means that the check has failed
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
