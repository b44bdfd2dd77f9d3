from django.urls import path

from files import audit_views, hold_views, sharing_views, tenant_views, views


# Resources end in a slash. Byte URLs do not, so that `curl -T`, `curl -O` and `wget -c` name files rightly (T-11).
urlpatterns = [
    path("collections/", views.CollectionsView.as_view(), name="collections"),
    path("collections/<str:slug>/", views.CollectionView.as_view(), name="collection"),
    path("collections/<str:slug>/restore/", views.RestoreView.as_view(), name="collection-restore"),
    path("collections/<str:slug>/grants/", sharing_views.GrantsView.as_view(), name="grants"),
    path("collections/<str:slug>/grants/<str:grant_id>/", sharing_views.GrantView.as_view(), name="grant"),
    path("collections/<str:slug>/holds/", hold_views.HoldsView.as_view(), name="holds"),
    path("collections/<str:slug>/holds/<str:hold_id>/", hold_views.HoldView.as_view(), name="hold"),
    path("collections/<str:slug>/files/", views.CollectionFilesView.as_view(), name="collection-files"),
    path("collections/<str:slug>/files/<str:filename>/", views.FileView.as_view(), name="file"),
    path("collections/<str:slug>/files/<str:filename>/preview/", views.PreviewView.as_view(), name="preview"),
    path("collections/<str:slug>/files/<str:filename>/download/", views.FileDownloadView.as_view(), name="file-download"),
    path("collections/<str:slug>/files/<str:filename>/grants/", sharing_views.GrantsView.as_view(), name="file-grants"),
    path(
        "collections/<str:slug>/files/<str:filename>/grants/<str:grant_id>/",
        sharing_views.GrantView.as_view(),
        name="file-grant",
    ),
    path("collections/<str:slug>/content/<str:filename>", views.ContentView.as_view(), name="content"),
    path("collections/<str:slug>/archive.zip", views.ArchiveStreamView.as_view(), name="archive"),
    path("collections/<str:slug>/archive/", views.ArchiveView.as_view(), name="archive-link"),
    path("tenants/<str:tenant>/usage/", tenant_views.UsageView.as_view(), name="tenant-usage"),
    path("audit.csv", audit_views.PlatformExport.as_view(), name="platform-audit-export"),
    path("tenants/<str:tenant>/audit.csv", audit_views.TenantExport.as_view(), name="audit-export"),
    path("files/", views.FilesView.as_view(), name="files"),
    path("tenants/<str:tenant>/grants/", sharing_views.TenantGrantsView.as_view(), name="tenant-grants"),
]

# Outside /api and outside authentication.
download_urlpatterns = [path("downloads/<str:token>", views.DownloadView.as_view(), name="download")]
