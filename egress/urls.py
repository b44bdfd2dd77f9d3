from django.urls import path

from egress import views


urlpatterns = [
    path("egress/requests/", views.RequestsView.as_view(), name="egress-requests"),
    path("egress/requests/<str:request_id>/", views.RequestView.as_view(), name="egress-request"),
    path("egress/requests/<str:request_id>/decisions/", views.DecisionsView.as_view(), name="egress-decisions"),
    path("egress/requests/<str:request_id>/resubmit/", views.ResubmitView.as_view(), name="egress-resubmit"),
    path("egress/requests/<str:request_id>/withdraw/", views.WithdrawView.as_view(), name="egress-withdraw"),
    path("egress/requests/<str:request_id>/revoke/", views.RevokeView.as_view(), name="egress-revoke"),
    path("egress/requests/<str:request_id>/retry/", views.RetryView.as_view(), name="egress-retry"),
    path("egress/requests/<str:request_id>/extend/", views.ExtendView.as_view(), name="egress-extend"),
    path("egress/requests/<str:request_id>/items/<int:number>/content", views.StagedFileView.as_view(), name="egress-item"),
    path("egress/requests/<str:request_id>/downloads/", views.DownloadsView.as_view(), name="egress-downloads"),
    path("egress/requests/<str:request_id>/package.zip", views.PackageView.as_view(), name="egress-package"),
    path("egress/requests/<str:request_id>/manifest/", views.ManifestView.as_view(), name="egress-manifest"),
    path("egress/signing-keys/", views.SigningKeysView.as_view(), name="egress-signing-keys"),
    path("tenants/<str:tenant>/egress-policy/", views.PolicyView.as_view(), name="egress-policy"),
]
