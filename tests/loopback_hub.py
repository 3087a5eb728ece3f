"""A small server on 127.0.0.1 that speaks what the hub's client needs to make a repo, commit to it and read it.

    with LoopbackHub() as hub:
        hub.repos["org/name"]["x.pt"] = b"..."

Every file is taken as a regular one, in the commit itself: the hub's stores for large files are not here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class LoopbackHub:
    """The server as a context manager.

    Attributes:
        repos: `org/name` (datasets as `datasets/org/name`) -> file -> bytes.
        requests: method and path of each request.
        tokens: request -> the Authorization it came with.
        private: the repos that were made private.
        refuse: status -> sent to every request instead of an answer; 0 for none.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.tokens: dict[str, str | None] = {}
        self.private: set[str] = set()
        self.refuse = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit_of(self, repo: str) -> str:
        content = json.dumps({name: hashlib.sha1(one).hexdigest() for name, one in sorted(self.repos[repo].items())})
        return hashlib.sha1(content.encode()).hexdigest()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Quiet."""

            def send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, one in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, one)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                path = unquote(urlsplit(self.path).path)
                hub.requests.append(f"{self.command} {path}")
                hub.tokens[hub.requests[-1]] = self.headers.get("Authorization")
                if hub.refuse:
                    self.send({"error": "refused"}, hub.refuse)
                else:
                    hub._answer(self, path.strip("/").split("/"), body)

            do_GET = do_POST = do_HEAD = do  # noqa: N815

        return Handler

    def _answer(self, handler: Any, parts: list[str], body: bytes) -> None:
        if parts == ["api", "repos", "create"]:
            self._create(handler, json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            handler.send({"errors": [], "warnings": []})
        elif parts[0] == "api":
            prefix = "" if parts[1] == "models" else f"{parts[1]}/"
            self._api(handler, prefix + "/".join(parts[2:4]), parts[4:], body)
        else:
            at = parts.index("resolve")
            self._resolve(handler, "/".join(parts[:at]), "/".join(parts[at + 2 :]))

    def _create(self, handler: Any, asked: dict[str, Any]) -> None:
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        repo = f"{prefix}{asked['organization']}/{asked['name']}"
        new = repo not in self.repos
        self.repos.setdefault(repo, {})
        if asked.get("visibility") == "private" or asked.get("private"):
            self.private.add(repo)
        handler.send({"url": f"{self.url}/{repo}", **({} if new else {"error": "exists"})}, 200 if new else 409)

    def _api(self, handler: Any, repo: str, rest: list[str], body: bytes) -> None:
        if repo not in self.repos:
            handler.send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        files, commit = self.repos[repo], self.commit_of(repo)
        if rest[:1] == ["preupload"]:
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            handler.send({"files": modes})
        elif rest[:1] == ["commit"]:
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            commit = self.commit_of(repo)
            handler.send({"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True})
        elif rest[:1] == ["tree"]:
            listed = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            handler.send(listed)
        else:
            siblings = [{"rfilename": name, "size": len(one)} for name, one in files.items()]
            handler.send({"id": repo.removeprefix("datasets/"), "sha": commit, "siblings": siblings, "private": False})

    def _resolve(self, handler: Any, repo: str, name: str) -> None:
        content = self.repos.get(repo, {}).get(name)
        if content is None:
            handler.send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        handler.send(content, headers={"ETag": etag, "X-Repo-Commit": self.commit_of(repo)})
