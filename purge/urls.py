from django.urls import path

from purge import views


urlpatterns = [
    path("purge/destructions/", views.DestructionsView.as_view(), name="destructions"),
    path("purge/destructions/<str:destruction>/", views.DestructionView.as_view(), name="destruction"),
    path("purge/certificates/", views.CertificatesView.as_view(), name="certificates"),
    path("purge/certificates/<str:destruction>/", views.CertificateView.as_view(), name="certificate"),
]
