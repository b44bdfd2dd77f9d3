"""What `files` adds to the API of a tenant: its usage, and the audit trail as a file (its pages are in `tenants.audit.views`)."""

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
        """What the tenant keeps, and its quota. For its admins and auditors, and superusers."""
        found = access.get_audited_tenant(user_of(request), tenant)
        return Response(UsageOutput(tenant_usage(found)).data)


class Export(APIView):
    def answer(self, request: Request, tenant: Tenant | None) -> HttpResponseBase:
        serializer = AuditInput(data=request.query_params)
        serializer.is_valid(raise_exception=True)
        is_head = request.method == "HEAD"
        return respond(
            audit_export.open_export(
                tenant, by=user_of(request), filters=serializer.validated_data, head=is_head, now=timezone.now()
            )
        )


class TenantExport(Export):
    scopes = {"GET": Scope.AUDIT}

    @extend_schema(operation_id="audit_export", parameters=[AuditInput], responses=CSV)
    def get(self, request: Request, tenant: str) -> HttpResponseBase:
        """What was done in a tenant, oldest first, for spreadsheets: cells that they would take for formulas begin with an
        apostrophe. Each export is on record."""
        user = user_of(request)
        found = access.get_tenant(user, tenant, suspended=True)
        access.check_can_audit(user, found)
        return self.answer(request, found)

    @extend_schema(operation_id="audit_export_head", parameters=[AuditInput], responses={200: None})
    def head(self, request: Request, tenant: str) -> HttpResponseBase:
        return self.get(request, tenant)


class PlatformExport(Export):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="platform_audit_export", parameters=[AuditInput], responses=CSV)
    def get(self, request: Request) -> HttpResponseBase:
        """What was done outside of every tenant."""
        access.check_can_audit_platform(user_of(request))
        return self.answer(request, None)

    @extend_schema(operation_id="platform_audit_export_head", parameters=[AuditInput], responses={200: None})
    def head(self, request: Request) -> HttpResponseBase:
        return self.get(request)
