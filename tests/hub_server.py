"""A stand-in for the Hugging Face Hub on loopback: the part of it that huggingface_hub calls.

    with HubServer() as hub:
        hub.add("org/model", folder)                      # or {"config.json": b"..."}
        hub.add("org/set", folder, kind="dataset", gated=True)
        hub.cut["model.safetensors"] = 1000               # end the next download early

The fixture `hub` (tests/conftest.py) points huggingface_hub at one, with an empty cache.
`hub.requests` lists (method, path, Range or None) of what was asked for.
"""

import dataclasses
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = (".safetensors", ".gguf", ".parquet", ".bin", ".model")  # stored with LFS: redirected
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree)/(.+))?")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclasses.dataclass
class Repo:
    """One repository. revisions: branch or tag -> commit.  files: commit -> path -> content."""

    gated: bool
    revisions: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        return self.revisions.get(revision, revision if revision in self.files else None)


class HubServer(ThreadingHTTPServer):
    """Serves repositories over HTTP. `url` is its address, `tokens` are those that open gates."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.cdn = f"http://localhost:{self.server_address[1]}"  # another host, as of large files
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens = {"hf_good"}
        self.cut: dict[str, int] = {}  # file: the next download of it ends after so many bytes
        self.broken: set[str] = set()  # files of which every download ends after a byte
        self.cdn_tokens: set[str | None] = set()  # what the host of large files was sent
        self.page = 1000  # files of a tree's page

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def add(
        self,
        name: str,
        files: Path | Mapping[str, bytes],
        revision: str = "main",
        kind: str = "model",
        gated: bool = False,
    ) -> str:
        """Adds a commit with these files to a repository, and returns its hash."""
        if isinstance(files, Path):
            paths = [path for path in sorted(files.rglob("*")) if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos.setdefault((kind, name), Repo(gated))
        repo.gated = gated
        digest = hashlib.sha1(name.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + hashlib.sha1(content).digest())
        commit = digest.hexdigest()
        repo.revisions[revision] = commit
        repo.files[commit] = dict(files)
        return commit

    def paths(self) -> list[str]:
        """The paths from which files were downloaded, in order."""
        return [
            path
            for method, path, _ in self.requests
            if method == "GET" and not path.startswith("/api/")
        ]

    def downloads(self) -> list[str]:
        """The names of the files that were downloaded, in order."""
        return [path.rsplit("/", 1)[-1] for path in self.paths()]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if match := API.fullmatch(path):
            self._api(*match.groups(), dict(urllib.parse.parse_qsl(url.query)))
        elif match := RESOLVE.fullmatch(path):
            self._resolve(*match.groups())
        elif path.startswith("/cdn/"):
            _, _, kind, org, name, commit, file = path.split("/", 6)
            self.server.cdn_tokens.add(self._token())
            self._send_file(self.server.repos[kind, f"{org}/{name}"].files[commit][file], file)
        else:
            self._refuse(404, "EntryNotFound", f"no page {path}")

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _repo(self, kind: str, name: str) -> Repo | None:
        repo, token = self.server.repos.get((kind, name)), self._token()
        if token == "hf_expired":
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repo is None and token is None:  # as for a private one
            self._refuse(401, None, "Invalid username or password.")
        elif repo is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
        else:
            return repo
        return None

    def _api(self, kind: str, name: str, part: str, revision: str, query: dict) -> None:
        if not (repo := self._repo(kind[:-1], name)):
            return
        if not (commit := repo.commit(revision or "main")):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.files[commit]
        if part == "tree":
            start = int(query.get("cursor", 0))
            page = [_tree_entry(file, files[file]) for file in sorted(files)]
            more = {}
            if start + self.server.page < len(page):
                target = f"{self.server.url}{self.path.split('?')[0]}?recursive=True"
                more["Link"] = f'<{target}&cursor={start + self.server.page}>; rel="next"'
            return self._send_json(page[start : start + self.server.page], **more)
        siblings = [_sibling(file, files[file]) for file in sorted(files)]
        gated = "manual" if repo.gated else False
        info = {"id": name, "sha": commit, "siblings": siblings, "gated": gated, "private": False}
        return self._send_json({**info, "tags": [], "downloads": 0, "likes": 0})

    def _resolve(self, kind: str | None, name: str, revision: str, file: str) -> None:
        kind = "dataset" if kind else "model"
        if not (repo := self._repo(kind, name)):
            return
        if repo.gated and self._token() not in self.server.tokens:
            status = 403 if self._token() else 401
            return self._refuse(status, "GatedRepo", f"Access to {name} is restricted")
        if not (commit := repo.commit(revision)):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in repo.files[commit]:
            return self._refuse(404, "EntryNotFound", f"no {file}", {"X-Repo-Commit": commit})
        content = repo.files[commit][file]
        if not file.endswith(LARGE):
            return self._send_file(content, file, {"X-Repo-Commit": commit})
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.server.cdn}/cdn/{kind}/{name}/{commit}/{file}",
        }
        return self._start(302, 0, headers)

    def _send_file(self, content: bytes, file: str, headers: Mapping[str, str] = {}) -> None:  # noqa: B006
        first, status, extra = 0, 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            first, status = int(match[1]), 206
            extra["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._start(status, len(content) - first, {**headers, **extra, "Accept-Ranges": "bytes"})
        if self.command == "GET":
            end = first + 1 if file in self.server.broken else len(content)
            end = self.server.cut.pop(file, end)
            self.wfile.write(content[first:end])
            if end < len(content):
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    def _send_json(self, value: object, **headers: str) -> None:
        body = json.dumps(value).encode()
        self._start(200, len(body), {"Content-Type": "application/json", **headers})
        self.wfile.write(body)

    def _refuse(
        self,
        status: int,
        code: str | None,
        message: str,
        headers: Mapping[str, str] = {},  # noqa: B006
    ) -> None:
        codes = {"X-Error-Code": code} if code else {}
        self._start(status, 0, {**codes, "X-Error-Message": message, **headers})

    def _start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _sibling(file: str, content: bytes) -> dict:
    lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    blob = {"rfilename": file, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
    return {**blob, "lfs": lfs} if file.endswith(LARGE) else blob


def _tree_entry(file: str, content: bytes) -> dict:
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    entry = {"type": "file", "path": file, "size": len(content)}
    entry["oid"] = hashlib.sha1(content).hexdigest()
    return {**entry, "lfs": lfs} if file.endswith(LARGE) else entry
