"""A small Hub on 127.0.0.1 that keeps model repositories in memory: create, branch, preupload, LFS, commit and resolve.

Each token of `tokens` may write to every repository. Public repositories can be read without a token. `cut` interrupts
connections.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

# The files that the real Hub stores as LFS objects, by its default .gitattributes.
LFS_NAMES = re.compile(r".*\.(safetensors|bin|onnx|pt|model)$")


def blob_id(content):
    """Returns the Git blob id of the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    private: bool
    branches: dict = field(default_factory=dict)  # name -> commit
    commits: dict = field(default_factory=dict)  # commit -> {path: content}

    def commit(self, branch, files, message):
        name = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name

    def resolve(self, revision):
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Request:
    method: str
    path: str
    token: str | None  # from the Authorization header
    payload: object = None


class HubServer(ThreadingHTTPServer):
    """`with HubServer(tokens={"hf_x": "me"}) as hub:` serves `hub.url` until the end of the block."""

    daemon_threads = True

    def __init__(self, tokens):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = tokens
        self.repos, self.objects, self.requests = {}, {}, []
        self.lock = threading.Lock()
        self.cut = None  # "upload" or "commit": close the connection halfway through each of these requests

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Ignores errors of clients that closed the connection or were disconnected by `cut`."""

    def files(self, repo, revision="main"):
        """Returns {path: content} of a repository at a revision."""
        return self.repos[repo].commits[self.repos[repo].resolve(revision)]

    def seen(self, pattern, method=None):
        """Returns the requests so far with a matching path."""
        return [r for r in self.requests if re.search(pattern, r.path) and method in (None, r.method)]


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(/.*)?", "tree"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})", "upload"),
    ("HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "file"),
    ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "file"),
    ("POST", r"/-/cut", "set_cut"),
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        """Prints no log to stderr."""

    def do_GET(self):
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self):
        self.url = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.user = self.server.tokens.get(token)
        self.request_seen = Request(self.command, self.path, token)
        with self.server.lock:
            self.server.requests.append(self.request_seen)
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, self.url.path)
            if method == self.command and found:
                values = {key: unquote(value) if value else None for key, value in found.groupdict().items()}
                if name in ("upload", "commit") and self.server.cut == name:
                    return self.break_off()
                self.body = self.read_body()
                if "repo" in values and not self.may_use(values["repo"], writing=method == "POST"):
                    return None
                return getattr(self, name)(**values)
        self.read_body()
        return self.fail(501, f"this server has no {self.command} {self.url.path}")

    # ---- Requests and responses ----

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def break_off(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        self.close_connection = True
        self.connection.shutdown(2)

    def payload(self):
        self.request_seen.payload = json.loads(self.body or b"{}")
        return self.request_seen.payload

    def answer(self, value, status=200, headers=()):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers:
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status, message, code=None):
        headers = [("X-Error-Message", message)] + ([("X-Error-Code", code)] if code else [])
        self.answer({"error": message}, status, headers)

    def may_use(self, repo, writing):
        """Returns whether the token gives access to the repository. If not, sends the error response of the real Hub."""
        found = self.server.repos.get(repo)
        if found is None or (found.private and not self.user):
            self.fail(404 if self.user else 401, "Repository not found", "RepoNotFound")
        elif writing and not self.user:
            self.fail(403, "This repository cannot be written to without a token")
        else:
            return True
        return False

    def commit_of(self, repo, revision):
        commit = self.server.repos[repo].resolve(revision or "main")
        if commit is None:
            self.fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- Routes ----

    def whoami(self):
        if self.user:
            self.answer({"name": self.user, "type": "user", "orgs": []})
        else:
            self.fail(401, "Invalid username or password.")

    def create(self):
        payload = self.payload()
        if not self.user:
            return self.fail(401, "Invalid username or password.")
        repo = f"{payload.get('organization') or self.user}/{payload['name']}"
        url = {"url": f"{self.server.url}/{repo}"}
        if repo in self.server.repos:
            return self.answer({**url, "error": "You already created this model repo"}, 409)
        private = bool(payload.get("private")) or payload.get("visibility") == "private"
        self.server.repos[repo] = Repo(private)
        self.server.repos[repo].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self.answer(url)

    def validate(self):
        self.answer({"errors": [], "warnings": []})

    def branch(self, repo, branch):
        found = self.server.repos[repo]
        if branch in found.branches:
            return self.fail(409, "Reference already exists")
        found.branches[branch] = found.branches["main"]
        return self.answer({})

    def preupload(self, repo, revision):
        if (commit := self.commit_of(repo, revision)) is None:
            return
        present = self.server.repos[repo].commits[commit]
        self.answer(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if LFS_NAMES.match(file["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": self.oid(present, file["path"]),
                    }
                    for file in self.payload()["files"]
                ]
            }
        )

    def oid(self, files, path):
        if path not in files:
            return None
        content = files[path]
        return hashlib.sha256(content).hexdigest() if LFS_NAMES.match(path) else blob_id(content)

    def batch(self, repo):
        objects = []
        for wanted in self.payload()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/objects/{wanted['oid']}"}}
            objects.append(answer)
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.fail(400, "The content is not what its name says")
        self.server.objects[oid] = self.body
        return self.answer({})

    def commit(self, repo, revision):
        if (before := self.commit_of(repo, revision)) is None:
            return None
        lines = [json.loads(line) for line in self.body.splitlines()]
        self.request_seen.payload = lines[0]["value"]
        files = dict(self.server.repos[repo].commits[before])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.fail(400, f"{value['path']} has not been uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                return self.fail(501, f"this server has no {line['key']}")
        name = self.server.repos[repo].commit(revision, files, lines[0]["value"]["summary"])
        return self.answer(
            {"success": True, "commitOid": name, "commitUrl": f"{self.server.url}/{repo}/commit/{name}"}
        )

    def info(self, repo, revision):
        if (commit := self.commit_of(repo, revision)) is None:
            return
        found = self.server.repos[repo]
        self.answer(
            {
                "id": repo,
                "sha": commit,
                "private": found.private,
                "tags": [],
                "siblings": [{"rfilename": name} for name in found.commits[commit]],
            }
        )

    def tree(self, repo, revision):
        if (commit := self.commit_of(repo, revision)) is None:
            return
        files = self.server.repos[repo].commits[commit]
        self.answer(
            [{"type": "file", "path": p, "size": len(c), "oid": self.oid(files, p)} for p, c in sorted(files.items())]
        )

    def file(self, repo, revision, file):
        if (commit := self.commit_of(repo, revision)) is None:
            return
        files = self.server.repos[repo].commits[commit]
        if file not in files:
            self.fail(404, "Entry not found", "EntryNotFound")
            return
        self.answer(files[file], headers=[("X-Repo-Commit", commit), ("ETag", f'"{self.oid(files, file)}"')])

    def set_cut(self):
        self.server.cut = parse_qs(self.url.query).get("what", [None])[0]
        self.answer({})
