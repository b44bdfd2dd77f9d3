from django.urls import path

from files.views import collections, content, downloads, files, grants, holds, tenants


# URLs of resources end in a slash. URLs of content do not, so that `curl -T`, `curl -O` and `wget -c` use the filename (T-11).
urlpatterns = [
    path("collections/", collections.CollectionsView.as_view(), name="collections"),
    path("collections/<str:slug>/", collections.CollectionView.as_view(), name="collection"),
    path("collections/<str:slug>/restore/", collections.RestoreView.as_view(), name="collection-restore"),
    path("collections/<str:slug>/grants/", grants.GrantsView.as_view(), name="grants"),
    path("collections/<str:slug>/grants/<str:grant_id>/", grants.GrantView.as_view(), name="grant"),
    path("collections/<str:slug>/holds/", holds.HoldsView.as_view(), name="holds"),
    path("collections/<str:slug>/holds/<str:hold_id>/", holds.HoldView.as_view(), name="hold"),
    path("collections/<str:slug>/files/", files.CollectionFilesView.as_view(), name="collection-files"),
    path("collections/<str:slug>/files/<str:filename>/", files.FileView.as_view(), name="file"),
    path("collections/<str:slug>/files/<str:filename>/preview/", content.PreviewView.as_view(), name="preview"),
    path("collections/<str:slug>/files/<str:filename>/download/", downloads.FileDownloadView.as_view(), name="file-download"),
    path("collections/<str:slug>/files/<str:filename>/grants/", grants.GrantsView.as_view(), name="file-grants"),
    path(
        "collections/<str:slug>/files/<str:filename>/grants/<str:grant_id>/",
        grants.GrantView.as_view(),
        name="file-grant",
    ),
    path("collections/<str:slug>/content/<str:filename>", content.ContentView.as_view(), name="content"),
    path("collections/<str:slug>/archive.zip", downloads.ArchiveStreamView.as_view(), name="archive"),
    path("collections/<str:slug>/archive/", downloads.ArchiveView.as_view(), name="archive-link"),
    path("tenants/<str:tenant>/usage/", tenants.UsageView.as_view(), name="tenant-usage"),
    path("audit.csv", tenants.PlatformAuditExportView.as_view(), name="platform-audit-export"),
    path("tenants/<str:tenant>/audit.csv", tenants.TenantAuditExportView.as_view(), name="audit-export"),
    path("files/", files.FilesView.as_view(), name="files"),
    path("tenants/<str:tenant>/grants/", grants.TenantGrantsView.as_view(), name="tenant-grants"),
]

# Not under /api, and without authentication: the token is the credential.
download_urlpatterns = [path("downloads/<str:token>", downloads.DownloadView.as_view(), name="download")]
