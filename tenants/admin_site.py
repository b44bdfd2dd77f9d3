"""The admin site. Its own password pages write past the services, so that they are audited here."""

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
        with password_audited(request, user_id=str(request.user.pk)):
            return super().password_change(request, extra_context)


@contextmanager
def password_audited(request: HttpRequest, *, user_id: str) -> Iterator[None]:
    """Around a view that may change this person's password: if it does, then in one transaction with the audit event."""
    if request.method != "POST":
        yield
        return
    with transaction.atomic():
        person = User.objects.select_for_update().filter(pk=user_id)
        before = person.first()
        yield
        after = person.first()
        if before and after and before.password != after.password:
            by = request.user if isinstance(request.user, User) else None
            audit.record("user.password", by=by, tenant=None, target=after, now=timezone.now())
