"""The API of the audit trails: a tenant's for its admins and auditors, the platform's for superusers."""

from drf_spectacular.utils import extend_schema
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response

from tenants import access, audit
from tenants.audit.serializers import AuditInput, EventOutput
from tenants.auth.permissions import PEOPLE_ONLY, user_of
from tenants.models import AuditEvent, Scope, Tenant


class Audit(generics.GenericAPIView[AuditEvent]):
    """Reading pages writes no audit event. An export writes one."""

    ordering = ("-seq",)
    filter_backends = ()
    queryset = AuditEvent.objects.none()  # only for the schema: `list_events` returns the events of one chain
    serializer_class = EventOutput

    def list_events(self, request: Request, tenant: Tenant | None) -> Response:
        filters = AuditInput(data=request.query_params)
        filters.is_valid(raise_exception=True)
        page = self.paginate_queryset(audit.events(tenant, **filters.validated_data))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


class TenantAudit(Audit):
    scopes = {"GET": Scope.AUDIT}

    @extend_schema(operation_id="audit_list", parameters=[AuditInput], responses=EventOutput(many=True))
    def get(self, request: Request, tenant: str) -> Response:
        """Lists the audit events of a tenant, newest first. For its admins and auditors."""
        user = user_of(request)
        found = access.get_tenant(user, tenant, suspended=True)
        access.check_can_audit(user, found)
        return self.list_events(request, found)


class PlatformAudit(Audit):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="platform_audit_list", parameters=[AuditInput], responses=EventOutput(many=True))
    def get(self, request: Request) -> Response:
        """Lists the audit events that belong to no tenant, such as those of users, sessions and keys. For superusers."""
        access.check_can_audit_platform(user_of(request))
        return self.list_events(request, None)
