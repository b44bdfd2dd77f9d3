from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.views import APIView


class SeeOther(APIView):
    """Leads a browser to a page, and tells everyone else where the pages are. It has GET alone: no write is answered by a redirect."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    page = ""  # name of its address

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        pages = {"docs": reverse("docs"), "schema": reverse("schema"), "admin": reverse("admin:index")}
        return Response(pages, status=303, headers={"Location": reverse(self.page)})
