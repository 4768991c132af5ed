"""A Hugging Face Hub on the loopback interface: as much of its protocol as downloads and one-commit uploads need."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Files = dict[str, bytes]


@dataclass
class FakeHub:
    """Repositories by kind and name, each a mapping from branch to files; and what was asked of them."""

    url: str = ""
    repositories: dict[tuple[str, str], dict[str, Files]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    status: int | None = None
    """With which every request is refused."""

    def add(self, kind: str, name: str, files: Files, *, branch: str = "main") -> None:
        self.repositories.setdefault((f"{kind}s", name), {})[branch] = files


def sha_of(files: Files) -> str:
    return hashlib.sha1(json.dumps({name: content.hex() for name, content in files.items()}).encode()).hexdigest()


def facts_of(name: str, files: Files) -> dict[str, Any]:
    return {"id": name, "sha": sha_of(files), "siblings": [{"rfilename": path} for path in files]}


def listing_of(files: Files, folder: str, *, is_deep: bool) -> list[dict[str, Any]]:
    """Returns what a folder holds; its subfolders as one entry each, or all that they hold."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    folders = sorted({prefix + path[len(prefix) :].partition("/")[0] for path in inside if "/" in path[len(prefix) :]})
    return [
        *({"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()} for path in folders),
        *(
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in inside.items()
            if is_deep or "/" not in path[len(prefix) :]
        ),
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.asked.append(path)
        if self.hub.status is not None:
            return self.answer(self.hub.status, {"error": "as configured"})
        api = r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)"
        if match := re.fullmatch(rf"{api}/(revision|tree)/([^/]+)(?:/(.+))?", url.path):
            kind, name, what, revision, folder = map(unquote, (group or "" for group in match.groups()))
            if (files := self.files(kind, name, revision)) is None:
                return None
            if what == "revision":
                return self.answer(200, facts_of(name, files))
            is_deep = "recursive=true" in url.query.lower()
            return self.answer(200, listing_of(files, folder, is_deep=is_deep))
        if match := re.fullmatch(api, path):
            kind, name = match.groups()
            files = self.files(kind, name, "main")
            return None if files is None else self.answer(200, facts_of(name, files))
        if match := re.fullmatch(r"/(?:(datasets)/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", url.path):
            kind, name, revision, file = (unquote(group or "") for group in match.groups())
            if (files := self.files(kind or "models", name, revision)) is None:
                return None
            if file not in files:
                return self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})
            content = files[file]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": sha_of(files)}
            return self.answer(200, content, headers)
        return self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 - so the standard library calls it

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, [given.get("organization"), given["name"]]))
            is_new = ("models", name) not in self.hub.repositories
            self.hub.repositories.setdefault(("models", name), {"main": {}})
            if given.get("private") or given.get("visibility") == "private":
                self.hub.private.add(name)
            return self.answer(200 if is_new else 409, {"url": f"{self.hub.url}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)", path)
        assert match, path
        name, what, branch = match.groups()
        branches = self.hub.repositories["models", name]
        if what == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.hub.commits.append(line["value"]["summary"])
            else:
                branches[branch][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = sha_of(branches[branch])
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def files(self, kind: str, name: str, revision: str) -> Files | None:
        branches = self.hub.repositories.get((kind, name))
        if branches is None:
            return self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        for branch, files in branches.items():
            if revision in (branch, sha_of(files)):
                return files
        return self.answer(404, {}, {"X-Error-Code": "RevisionNotFound"})

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def serving_hub(cache: Path) -> Iterator[FakeHub]:
    """Serves an empty Hub, and lets the library talk to it with a separate cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", "a-token")
        patch.delenv("BILSTM_CLS_OFFLINE")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        # Both libraries read the address when they are imported.
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        with contextlib.suppress(ImportError):
            import datasets

            patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        yield hub
    server.shutdown()
    server.server_close()
    thread.join()
