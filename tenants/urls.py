"""Under /api/v1/."""

from django.urls import path

from tenants import apikey_views, views


urlpatterns = [
    path("auth/token/", views.SignIn.as_view(), name="token"),
    path("auth/token/refresh/", views.Refresh.as_view(), name="token-refresh"),
    path("auth/token/revoke/", views.Revoke.as_view(), name="token-revoke"),
    path("me/", views.Me.as_view(), name="me"),
    path("tenants/<str:tenant>/api-keys/", apikey_views.ApiKeysView.as_view(), name="api-keys"),
    path("tenants/<str:tenant>/api-keys/<str:prefix>/", apikey_views.ApiKeyView.as_view(), name="api-key"),
    path("tenants/<str:tenant>/service-accounts/", apikey_views.ServiceAccountsView.as_view(), name="service-accounts"),
    path(
        "tenants/<str:tenant>/service-accounts/<str:account>/",
        apikey_views.ServiceAccountView.as_view(),
        name="service-account",
    ),
]
