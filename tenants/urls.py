"""Under /api/v1/."""

from django.urls import path

from tenants import audit_views, views


urlpatterns = [
    path("auth/token/", views.SignIn.as_view(), name="token"),
    path("auth/token/refresh/", views.Refresh.as_view(), name="token-refresh"),
    path("auth/token/revoke/", views.Revoke.as_view(), name="token-revoke"),
    path("me/", views.Me.as_view(), name="me"),
    path("audit/", audit_views.PlatformAudit.as_view(), name="platform-audit"),
    path("tenants/<str:tenant>/audit/", audit_views.TenantAudit.as_view(), name="audit"),
]
