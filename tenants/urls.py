"""Under /api/v1/."""

from django.urls import path

from tenants import people_views, views
from tenants.audit.views import PlatformAudit, TenantAudit
from tenants.auth import api_key_views


urlpatterns = [
    path("auth/token/", views.SignIn.as_view(), name="token"),
    path("auth/token/refresh/", views.Refresh.as_view(), name="token-refresh"),
    path("auth/token/revoke/", views.Revoke.as_view(), name="token-revoke"),
    path("auth/password/change/", views.ChangePassword.as_view(), name="password-change"),
    path("auth/password/reset/", views.ResetPassword.as_view(), name="password-reset"),
    path("auth/password/reset/confirm/", views.ConfirmReset.as_view(), name="password-reset-confirm"),
    path("auth/invitations/accept/", people_views.AcceptView.as_view(), name="invitation-accept"),
    path("me/", views.Me.as_view(), name="me"),
    path("tenants/", people_views.TenantsView.as_view(), name="tenants"),
    path("tenants/<str:tenant>/", people_views.TenantView.as_view(), name="tenant"),
    path("tenants/<str:tenant>/members/", people_views.MembersView.as_view(), name="members"),
    path("tenants/<str:tenant>/members/<str:username>/", people_views.MemberView.as_view(), name="member"),
    path("tenants/<str:tenant>/invitations/", people_views.InvitationsView.as_view(), name="invitations"),
    path("tenants/<str:tenant>/invitations/<str:invitation>/", people_views.InvitationView.as_view(), name="invitation"),
    path("tenants/<str:tenant>/api-keys/", api_key_views.ApiKeysView.as_view(), name="api-keys"),
    path("tenants/<str:tenant>/api-keys/<str:prefix>/", api_key_views.ApiKeyView.as_view(), name="api-key"),
    path("tenants/<str:tenant>/service-accounts/", api_key_views.ServiceAccountsView.as_view(), name="service-accounts"),
    path(
        "tenants/<str:tenant>/service-accounts/<str:account>/",
        api_key_views.ServiceAccountView.as_view(),
        name="service-account",
    ),
    path("audit/", PlatformAudit.as_view(), name="platform-audit"),
    path("tenants/<str:tenant>/audit/", TenantAudit.as_view(), name="audit"),
]
