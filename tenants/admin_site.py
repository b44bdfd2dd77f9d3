"""The admin site. Django's password pages bypass the services, so this module audits them."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.contrib.admin import AdminSite
from django.db import transaction
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone

from tenants import audit
from tenants.models import User


class Site(AdminSite):
    site_header = site_title = "Strongroom"
    index_title = "Operations"

    def password_change(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> TemplateResponse:
        with audit_password_change(request, user_id=str(request.user.pk)):
            return super().password_change(request, extra_context)


@contextmanager
def audit_password_change(request: HttpRequest, *, user_id: str) -> Iterator[None]:
    """Runs a view that can change the user's password, and writes an audit event in the same transaction if it does."""
    if request.method != "POST":
        yield
        return
    with transaction.atomic():
        users = User.objects.select_for_update().filter(pk=user_id)
        before = users.first()
        yield
        after = users.first()
        if before and after and before.password != after.password:
            by = request.user if isinstance(request.user, User) else None
            audit.record("user.password", by=by, tenant=None, target=after, now=timezone.now())
