"""The API for destructions and their certificates. It is read-only, for admins and auditors."""

from drf_spectacular.utils import extend_schema
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from purge import access
from purge.filters import CertificateFilter, DestructionFilter
from purge.models import Destruction
from purge.serializers import CertificateOutput, DestructionOutput
from tenants.auth.permissions import user_of
from tenants.models import Scope


class DestructionsView(generics.GenericAPIView[Destruction]):
    scopes = {"GET": Scope.AUDIT}
    filterset_class = DestructionFilter
    queryset = Destruction.objects.none()  # for the schema only; responses use `access`
    serializer_class = DestructionOutput
    ordering = ("-started_at", "-id")

    @extend_schema(operation_id="destructions_list", responses=DestructionOutput(many=True))
    def get(self, request: Request) -> Response:
        """Lists running and completed destructions in the tenants that you administer or audit."""
        page = self.paginate_queryset(self.filter_queryset(access.visible_destructions(user_of(request))))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


class DestructionView(APIView):
    scopes = {"GET": Scope.AUDIT}

    @extend_schema(operation_id="destructions_retrieve", responses=DestructionOutput)
    def get(self, request: Request, destruction: str) -> Response:
        """Returns one destruction: its progress and, if it is blocked, the reason."""
        found = access.get_destruction(user_of(request), destruction)
        return Response(DestructionOutput(found, context={"request": request}).data)


class CertificatesView(generics.GenericAPIView[Destruction]):
    scopes = {"GET": Scope.AUDIT}
    filterset_class = CertificateFilter
    queryset = Destruction.objects.none()
    serializer_class = CertificateOutput
    ordering = ("-started_at", "-id")

    @extend_schema(operation_id="certificates_list", responses=CertificateOutput(many=True))
    def get(self, request: Request) -> Response:
        """Lists the certificates of destruction in the tenants that you administer or audit."""
        page = self.paginate_queryset(self.filter_queryset(access.visible_certificates(user_of(request))))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


class CertificateView(APIView):
    scopes = {"GET": Scope.AUDIT}

    @extend_schema(operation_id="certificates_retrieve", responses=CertificateOutput)
    def get(self, request: Request, destruction: str) -> Response:
        """Returns the signed certificate of a destruction. The response is 404 until the destruction is complete."""
        return Response(CertificateOutput(access.get_certificate(user_of(request), destruction)).data)
