from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.views import APIView


class Root(APIView):
    """Redirects browsers to the API documentation, and lists the entry points for other clients."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        docs = reverse("docs")
        entry_points = {"docs": docs, "schema": reverse("schema"), "admin": reverse("admin:index")}
        return Response(entry_points, status=303, headers={"Location": docs})
