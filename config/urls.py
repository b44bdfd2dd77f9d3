from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerSplitView

from config import problems
from config.views import Root
from files.urls import download_urlpatterns


urlpatterns = [
    path("api/v1/", include("tenants.urls")),
    path("api/v1/", include("files.urls")),
    path("api/v1/", include("egress.urls")),
    path("api/v1/", include("purge.urls")),
    path("api/schema/", SpectacularJSONAPIView.as_view(), name="schema"),
    path("api/docs/", SpectacularSwaggerSplitView.as_view(url_name="schema", template_name="docs.html"), name="docs"),
    *download_urlpatterns,
    path("", Root.as_view()),
    path("admin/", admin.site.urls),
]

handler400 = problems.bad_request
handler403 = problems.permission_denied
handler404 = problems.page_not_found
handler500 = problems.server_error
