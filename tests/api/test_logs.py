"""Log lines of real requests."""

import json
import logging
from collections.abc import Callable

from rest_framework.test import APIClient

from config.logs import JsonFormatter
from tenants.models import Tenant, User


def test_request_line_names_the_tenant_that_it_was_let_at_and_the_next_one_forgets_it(
    api: Callable[[User], APIClient], alice: User, acme: Tenant
) -> None:
    client, told = api(alice), []
    logger = logging.getLogger("strongroom.request")
    handler = logging.Handler()
    handler.emit = lambda record: told.append(json.loads(JsonFormatter().format(record)))  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        slug = client.post("/api/v1/collections/", {"display_name": "November", "tenant": "acme"}).json()["id"]
        client.get(f"/api/v1/collections/{slug}/")
        client.get("/api/v1/me/")
    finally:
        logger.removeHandler(handler)

    assert [line.get("tenant") for line in told] == [str(acme.pk), str(acme.pk), None]
