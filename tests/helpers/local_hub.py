"""A model hub on this machine: as much of its HTTP as huggingface_hub asks for to make, fill and fetch a repository."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_ann"
_ROUTE = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|preupload|commit|branch|tree)/(?P<revision>[^/]+))?"
)
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class LocalHub:
    """repositories: by id, each with the commits of its branches: files by their paths. What is binary goes by LFS."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, list[dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.address = ""

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        branches = self.repositories[repo]
        if revision in branches:
            return branches[revision][-1]
        return next((at for of in branches.values() for at in of if commit_id(at) == revision), None)


def commit_id(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextlib.contextmanager
def local_hub():
    """Within: a hub that listens on a port of its own; `address` is what HF_ENDPOINT is to be."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, body: object = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._send(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            self._send(200, {"name": "ann", "type": "user", "orgs": []})
        elif found := _ROUTE.fullmatch(path):
            self._read(found["repo"], found["what"], found["revision"] or "main")
        elif found := _FILE.fullmatch(path):
            self._read(found["repo"], "file", found["revision"], found["path"])
        else:
            self._missing("EntryNotFound")

    do_HEAD = do_GET

    def _read(self, repo: str, what: str | None, revision: str, path: str = "") -> None:
        if repo not in self.hub.repositories or (repo in self.hub.private and not self._known()):
            return self._missing("RepoNotFound")
        files = self.hub.files(repo, revision)
        if files is None:
            return self._missing("RevisionNotFound")
        if what == "tree":
            kept = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self._send(200, kept)
        if what == "file":
            if path not in files:
                return self._missing("EntryNotFound")
            sha = hashlib.sha1(files[path]).hexdigest()
            return self._send(200, files[path], ETag=f'"{sha}"', X_Repo_Commit=commit_id(files))
        self._send(200, {"id": repo, "sha": commit_id(files), "siblings": [{"rfilename": name} for name in files]})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if hashlib.sha256(data).hexdigest() != self.path.rpartition("/")[2]:
            return self._send(400, {"error": "another file"})
        self.hub.large[self.path.rpartition("/")[2]] = data
        self._send(200, {})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if not self._known():
            return self._send(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(data)["content"].split("---")[1])
            wrong = [] if isinstance(front, dict) else [{"message": "no front matter"}]
            return self._send(200 if not wrong else 400, {"errors": wrong, "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(data))
        if path.endswith("/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.address}/large/{one['oid']}"}}}
                for one in json.loads(data)["objects"]
            ]
            return self._send(200, {"transfer": "basic", "objects": objects})
        found = _ROUTE.fullmatch(path)
        if found is None or found["repo"] not in self.hub.repositories:
            return self._missing("RepoNotFound")
        if found["what"] == "branch":
            branches = self.hub.repositories[found["repo"]]
            branches.setdefault(found["revision"], branches["main"][:1])
            return self._send(200, {})
        if found["what"] == "preupload":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if b"\0" in base64.b64decode(one["sample"]) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(data)["files"]
            ]
            return self._send(200, {"files": modes})
        self._commit(found["repo"], found["revision"], [json.loads(line) for line in data.splitlines()])

    def _create(self, asked: dict) -> None:
        repo = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        if repo in self.hub.repositories:
            return self._send(409, {"url": f"{self.hub.address}/{repo}", "error": "You already created this repo"})
        self.hub.repositories[repo] = {"main": [{".gitattributes": b""}]}
        if asked.get("private") or asked.get("visibility") == "private":  # as clients of before and of now say it
            self.hub.private.add(repo)
        self._send(200, {"url": f"{self.hub.address}/{repo}"})

    def _commit(self, repo: str, revision: str, lines: list[dict]) -> None:
        files = dict(self.hub.files(repo, revision))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        self.hub.repositories[repo][revision].append(files)
        sha = commit_id(files)
        self._send(200, {"commitUrl": f"{self.hub.address}/{repo}/commit/{sha}", "commitOid": sha})
