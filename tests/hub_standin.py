"""A stand-in for the Hub on loopback: as much of its interface as models and data sets need.

Every file is accepted as a regular one, so there is no large-file storage to stand in for.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit


class HubStandIn(ThreadingHTTPServer):
    """Serves while used as a context; remembers the commits.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        commits: (message, {path: content}) of each commit, in order.
        files: {path: content} of the newest revision.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.files: dict[str, bytes] = {}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()

    @property
    def revision(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *args):
        """Keeps the tests' output to the tests."""

    def answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def entries(self, folder: str, recursive: bool) -> list[dict]:
        """Files and folders below a folder, as the Hub lists them."""
        found = {}
        for name, content in self.server.files.items():
            for parent in reversed(PurePosixPath(name).parents[:-1]):
                found[str(parent)] = {"type": "directory"}
            found[name] = {"type": "file", "size": len(content)}
        below = [path for path in found if path.startswith(folder)]
        if not recursive:
            below = [path for path in below if "/" not in path[len(folder) :]]
        return [{"path": path, "oid": "0" * 40, **found[path]} for path in below]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            name = json.loads(body)
            repo = f"{name.get('organization') or 'someone'}/{name['name']}"
            self.answer({"url": f"{self.server.endpoint}/{repo}", "id": repo})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in files
                    ]
                }
            )
        elif "/paths-info/" in path:
            # huggingface_hub 1 sends a form.
            is_form = "form" in self.headers.get("Content-Type", "")
            paths = (parse_qs(body.decode()) if is_form else json.loads(body))["paths"]
            self.answer([entry for entry in self.entries("", True) if entry["path"] in paths])
        elif "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            added = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.server.commits.append((lines[0]["value"]["summary"], added))
            self.server.files |= added
            repo = "/".join(path.split("/")[3:5])
            url = f"{self.server.endpoint}/{repo}/commit/{self.server.revision}"
            self.answer({"success": True, "commitOid": self.server.revision, "commitUrl": url})
        else:
            self.answer({"error": f"no such call: {path}"}, status=404)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if "/resolve/" in path:
            content = self.server.files.get(path.split("/resolve/")[1].split("/", 1)[1])
            if content is None:
                return self.answer(status=404, X_Error_Code="EntryNotFound")
            part = slice(None)
            if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                part = slice(int(asked[1]), int(asked[2]) + 1)
            return self.answer(
                content[part],
                206 if asked else 200,
                ETag=f'"{hashlib.sha1(content).hexdigest()}"',
                X_Repo_Commit=self.server.revision,
            )
        if "/tree/" in path:
            _, _, folder = path.split("/tree/")[1].partition("/")
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            return self.answer(self.entries(f"{folder}/" if folder else "", recursive))
        if "/auth-check" in path:
            return self.answer({})
        if path.startswith(("/api/models/", "/api/datasets/")):
            repo = "/".join(path.split("/")[3:5])
            siblings = [{"rfilename": name} for name in self.server.files]
            info = {"id": repo, "modelId": repo, "sha": self.server.revision, "siblings": siblings}
            return self.answer(info | {"private": False, "tags": [], "downloads": 0, "likes": 0})
        return self.answer({"error": f"no such page: {path}"}, status=404)

    do_HEAD = do_GET
