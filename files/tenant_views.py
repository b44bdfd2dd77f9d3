"""What `files` adds to the API of a tenant."""

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files.serializers import UsageOutput
from files.usage import usage_of
from tenants import access
from tenants.auth.permissions import ADMINISTER, user_of


class UsageView(APIView):
    scopes = ADMINISTER

    @extend_schema(operation_id="tenants_usage", responses=UsageOutput)
    def get(self, request: Request, tenant: str) -> Response:
        """What the tenant keeps, and its quota. For its admins and auditors, and superusers."""
        found = access.get_audited_tenant(user_of(request), tenant)
        return Response(UsageOutput(usage_of(found)).data)
