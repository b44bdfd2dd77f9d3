"""An operator can open every admin page; no page shows content or edits state that services own."""

from collections.abc import Callable

import pytest
from django.contrib import admin
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from files.models import Collection, StoredFile, Upload
from tenants.models import User


@pytest.fixture
def operator(client: Client, root: User) -> Client:
    root.is_staff = True
    root.save()
    client.force_login(root)
    return client


@pytest.fixture
def filled(api: Callable[[User], APIClient], alice: User) -> Collection:
    alices = api(alice)
    slug = alices.post("/api/v1/collections/", {"display_name": "November"}).json()["id"]
    alices.put(f"/api/v1/collections/{slug}/content/patient-4711.csv", b"secret content", content_type="text/csv")
    return Collection.objects.get(slug=slug)


def test_list_pages_open(operator: Client, filled: Collection) -> None:
    for model in admin.site._registry:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
        assert operator.get(reverse(name), {"q": "nov"}).status_code == 200, name


def test_collection_page_shows_no_filenames_and_no_content(operator: Client, filled: Collection) -> None:
    page = operator.get(reverse("admin:files_collection_change", args=[filled.pk])).content.decode()

    assert filled.slug in page
    assert "patient-4711" not in page
    assert "secret content" not in page


@pytest.mark.parametrize("model", [Collection, Upload])
def test_collections_and_uploads_cannot_be_added_or_deleted(operator: Client, filled: Collection, model: type[Model]) -> None:
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"

    assert operator.get(reverse(f"{name}_add")).status_code == 403
    assert operator.post(reverse(f"{name}_delete", args=[filled.pk])).status_code in {302, 403}
    assert Collection.objects.filter(pk=filled.pk).exists()


def test_collection_status_cannot_be_posted(operator: Client, filled: Collection) -> None:
    answer = operator.post(reverse("admin:files_collection_change", args=[filled.pk]), {"status": "deleted", "display_name": "x"})

    assert answer.status_code == 403
    filled.refresh_from_db()
    assert filled.status == Collection.Status.OPEN


def test_files_keys_and_links_have_no_page() -> None:
    registered = {model.__name__ for model in admin.site._registry}

    assert not registered & {StoredFile.__name__, "Key", "DownloadLink"}
