"""API views of a tenant's usage and of audit exports. The list of audit events is in `tenants.audit.views`."""

from django.http import HttpResponseBase
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files import audit_export
from files.http.responses import BYTES_RESPONSE, respond
from files.quota import tenant_usage
from files.serializers import UsageOutput
from tenants import access
from tenants.audit.serializers import AuditInput
from tenants.auth.permissions import ADMINISTER, PEOPLE_ONLY, user_of
from tenants.models import Scope, Tenant


CSV = {(200, "text/csv"): BYTES_RESPONSE}


class UsageView(APIView):
    scopes = ADMINISTER

    @extend_schema(operation_id="tenants_usage", responses=UsageOutput)
    def get(self, request: Request, tenant: str) -> Response:
        """Returns the usage and the quota of the tenant. For its admins and auditors, and for superusers."""
        found = access.get_audited_tenant(user_of(request), tenant)
        return Response(UsageOutput(tenant_usage(found)).data)


class AuditExportView(APIView):
    def export(self, request: Request, tenant: Tenant | None) -> HttpResponseBase:
        serializer = AuditInput(data=request.query_params)
        serializer.is_valid(raise_exception=True)
        is_head = request.method == "HEAD"
        return respond(
            audit_export.open_export(
                tenant, by=user_of(request), filters=serializer.validated_data, head=is_head, now=timezone.now()
            )
        )


class TenantAuditExportView(AuditExportView):
    scopes = {"GET": Scope.AUDIT}

    @extend_schema(operation_id="audit_export", parameters=[AuditInput], responses=CSV)
    def get(self, request: Request, tenant: str) -> HttpResponseBase:
        """Exports the audit events of a tenant as CSV for spreadsheets, oldest first. An apostrophe is added before text that a
        spreadsheet would take for a formula. Each export is recorded."""
        user = user_of(request)
        found = access.get_tenant(user, tenant, suspended=True)
        access.check_can_audit(user, found)
        return self.export(request, found)

    @extend_schema(operation_id="audit_export_head", parameters=[AuditInput], responses={200: None})
    def head(self, request: Request, tenant: str) -> HttpResponseBase:
        return self.get(request, tenant)


class PlatformAuditExportView(AuditExportView):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="platform_audit_export", parameters=[AuditInput], responses=CSV)
    def get(self, request: Request) -> HttpResponseBase:
        """Exports the audit events of the platform that belong to no tenant as CSV, oldest first."""
        access.check_can_audit_platform(user_of(request))
        return self.export(request, None)

    @extend_schema(operation_id="platform_audit_export_head", parameters=[AuditInput], responses={200: None})
    def head(self, request: Request) -> HttpResponseBase:
        return self.get(request)
