"""A user of a live server, with a token and a collection. The methods that run curl require the mark needs("curl")."""

import hashlib
import http.client
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from tests.live.waiting import LIMIT


if TYPE_CHECKING:
    from tests.live.server import Server

CONFIG = "bearer"


class Person:
    def __init__(self, server: "Server", role: str, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.token = server.token(role)
        # curl reads the token from a file, because every user of a machine can see the arguments of a process.
        (folder / CONFIG).write_text(f'header = "Authorization: Bearer {self.token}"\n')
        status, collection = self.api("POST", "/api/v1/collections/", {"tenant": "demo", "display_name": uuid.uuid4().hex})
        assert status == 201, collection
        self.collection: str = collection["id"]

    def api(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return self.server.request(method, path, token=self.token, body=body)

    @property
    def files(self) -> str:
        return f"/api/v1/collections/{self.collection}/files/"

    def filenames(self) -> set[str]:
        status, files = self.api("GET", self.files)
        assert status == 200
        return {file["filename"] for file in files["results"]}

    def content(self, filename: str = "") -> str:
        return f"{self.server.url}/api/v1/collections/{self.collection}/content/{quote(filename)}"

    def command(self, *arguments: object) -> list[str]:
        return ["curl", "-sS", "-K", str(self.folder / CONFIG), *map(str, arguments)]

    def curl(self, *arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(self.command("--max-time", LIMIT, *arguments), cwd=cwd, capture_output=True, check=False)

    def upload(self, filename: str, content: bytes) -> None:
        source = self.folder / "upload"
        source.write_bytes(content)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=LIMIT)
        try:
            with source.open("rb") as body:
                headers = {"Authorization": f"Bearer {self.token}", "Content-Length": str(len(content))}
                connection.request("PUT", urlsplit(self.content(filename)).path, body, headers)
                response = connection.getresponse()
                assert response.status in {200, 201}, response.read()
                response.read()
        finally:
            connection.close()

    def link(self, filename: str) -> str:
        status, link = self.api("POST", f"{self.files}{quote(filename)}/download/", {})
        assert status == 201, link
        url: str = link["url"]
        return url


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
