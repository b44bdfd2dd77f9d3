"""One request, from its submission to the researcher's zip, and what everybody sees of it on the way."""

import hashlib
import io
import json
import zipfile

import pytest

from tenants.models import Tenant, User
from tests.services.egress import FILES, Api, body, decide, fill, make_reviewers, path, see, submit, work_on


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


def test_from_the_submission_to_the_zip(api: Api, bob: User, people: dict[str, User]) -> None:
    asking, grace, ruth = api(bob), api(people["grace"]), api(people["ruth"])
    request = submit(asking, fill(asking))
    assert (request["status"], request["waits_for"]) == ("submitted", "system")
    work_on()
    assert see(grace, request)["status"] == "in_review"
    item = grace.get(path(request, "items/1/content"))
    assert body(item) == FILES["a.csv"]
    assert decide(grace, request).status_code == 201
    assert decide(ruth, request).status_code == 201
    assert see(asking, request)["status"] == "approved"
    work_on()
    released = see(asking, request)
    assert released["status"] == "released", released
    package = asking.get(path(request, "package.zip"))
    content = body(package)
    assert hashlib.sha256(content).hexdigest() == released["package_sha256"]
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in FILES} == FILES
        manifest = json.loads(opened.read("manifest.json"))
    assert [decision["by"]["username"] for decision in manifest["decisions"]] == ["grace", "ruth"]
    assert asking.get(path(request, "package.zip")).status_code == 409
