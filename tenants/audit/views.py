"""The audit trail over the API: a tenant's for its admins and auditors, the platform's for superusers."""

from drf_spectacular.utils import extend_schema
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response

from tenants import access, audit
from tenants.audit.serializers import AuditInput, EventOutput
from tenants.auth.permissions import PEOPLE_ONLY, user_of
from tenants.models import AuditEvent, Scope, Tenant


class Audit(generics.GenericAPIView[AuditEvent]):
    """Reading page by page is not on record itself; an export is."""

    ordering = ("-seq",)
    filter_backends = ()
    queryset = AuditEvent.objects.none()  # for the schema: what is served is one chain
    serializer_class = EventOutput

    def answer(self, request: Request, tenant: Tenant | None) -> Response:
        wanted = AuditInput(data=request.query_params)
        wanted.is_valid(raise_exception=True)
        page = self.paginate_queryset(audit.events(tenant, **wanted.validated_data))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


class TenantAudit(Audit):
    scopes = {"GET": Scope.AUDIT}

    @extend_schema(operation_id="audit_list", parameters=[AuditInput], responses=EventOutput(many=True))
    def get(self, request: Request, tenant: str) -> Response:
        """What was done in a tenant, newest first. For its admins and auditors."""
        user = user_of(request)
        found = access.get_tenant(user, tenant, suspended=True)
        access.check_can_audit(user, found)
        return self.answer(request, found)


class PlatformAudit(Audit):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="platform_audit_list", parameters=[AuditInput], responses=EventOutput(many=True))
    def get(self, request: Request) -> Response:
        """What was done outside of every tenant: people, sessions, keys. For superusers."""
        access.check_can_audit_platform(user_of(request))
        return self.answer(request, None)
