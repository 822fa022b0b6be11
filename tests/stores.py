"""Fakes of the stores that a source may lie in; each checks no more than our tests need."""

import io
import json
import socket
import threading
import urllib.parse
import xml.etree.ElementTree as ET
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape


class FakeS3(ThreadingHTTPServer):
    """As much of S3 as Arrow's client asks for; it checks no signature."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _S3Request)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.refused = ""
        """Method that is answered with 403."""
        self.asked: list[str] = []
        """Method and key of every request."""
        self.failures: deque[str] = deque()
        """What the next requests meet, one each: "503 SlowDown", "hang up", "" for an answer."""
        self.is_down = False

    def go_down(self, seconds: float) -> None:
        """Refuse connections for a while, and hang up those that are open."""
        self.is_down = True
        self.shutdown()
        self.socket.close()
        threading.Timer(seconds, self._come_back).start()

    def _come_back(self) -> None:
        self.is_down = False
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _S3Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it holds an answer back for 40 ms
    server: FakeS3

    def log_message(self, *args: object) -> None:
        pass

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.command == self.server.refused:
            self.close_connection = True
            self.send_error(403)
            return False
        address = urllib.parse.urlsplit(self.path)
        self.key = urllib.parse.unquote(address.path).strip("/")
        if address.path.endswith("/") and "/" in self.key:
            self.key += "/"  # the mark of an empty folder
        self.query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        self.server.asked.append(f"{self.command} {self.key}")
        return not self._fails()

    def _fails(self) -> bool:
        failure = self.server.failures.popleft() if self.server.failures else ""
        if failure == "hang up" or self.server.is_down:
            self.close_connection = True
        elif failure:
            self._body()
            status, code = failure.split()
            self._answer(f"<Error><Code>{code}</Code></Error>".encode(), int(status))
        return bool(failure) or self.server.is_down

    def do_HEAD(self) -> None:
        found = "/" not in self.key or self.key in self.server.objects
        body = self.server.objects.get(self.key, b"")
        self._answer(body, 200 if found else 404)

    def do_GET(self) -> None:
        if "/" not in self.key:
            return self._list()
        body = self.server.objects.get(self.key)
        if body is None:
            return self._answer(b"<Error><Code>NoSuchKey</Code></Error>", 404)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1]
        self._answer(part, 206, {"Content-Range": f"bytes {first}-{last}/{len(body)}"})

    def do_PUT(self) -> None:
        body = self._body()
        if "partNumber" in self.query:
            self.server.parts[self.query["uploadId"], int(self.query["partNumber"])] = body
        else:
            self.server.objects[self.key] = body
        self._answer()

    def do_POST(self) -> None:
        body = self._body()
        if "delete" in self.query:
            for node in ET.fromstring(body).iter():
                if node.tag.endswith("Key"):
                    self.server.objects.pop(f"{self.key}/{node.text}", None)
            return self._answer(b"<DeleteResult/>")
        if "uploads" in self.query:
            name = f"<UploadId>{escape(self.key)}</UploadId>"
            return self._answer(
                f"<InitiateMultipartUploadResult>{name}</InitiateMultipartUploadResult>".encode()
            )
        numbers = sorted(key for key in self.server.parts if key[0] == self.query["uploadId"])
        self.server.objects[self.key] = b"".join(self.server.parts.pop(key) for key in numbers)
        self._answer(
            b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        )

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.key, None)
        self._answer(status=204)

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        contents, folders = "", set()
        for path in sorted(self.server.objects):
            bucket, _, key = path.partition("/")
            if bucket != self.key or not key.startswith(prefix):
                continue
            head, cut, _ = key[len(prefix) :].partition(delimiter or "\0")
            if cut:
                folders.add(prefix + head + cut)
            else:
                size = len(self.server.objects[path])
                date = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                contents += (
                    f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>{date}</Contents>"
                )
        for folder in sorted(folders):
            contents += f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        contents += f"<KeyCount>{contents.count('<Key>') + len(folders)}</KeyCount>"
        self._answer(f"<ListBucketResult>{contents}</ListBucketResult>".encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = _chunks(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        coded = "aws-chunked" in self.headers.get("Content-Encoding", "")
        return _chunks(io.BytesIO(body)) if coded else body

    def _answer(
        self, body: bytes = b"", status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        dated = {"ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        for name, value in (dated | {"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _chunks(stream: io.BufferedIOBase) -> bytes:
    body = b""
    while size := int(stream.readline().split(b";")[0], 16):
        body += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass  # checksums
    return body


class FakeHub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as its client asks for, to list and to read data sets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubRequest)
        self.files: dict[str, bytes] = {}
        """By OWNER/NAME/PATH."""
        self.revisions = {"main"}
        self.access = "public"
        """public, gated (all may list it) or private."""
        self.tokens: dict[str, bool] = {}
        """Whether a token opens what is not public; any other is no token at all."""
        self.asked: list[tuple[str, str]] = []
        """Address and range of every request."""
        self.broken = ""
        """What an address holds that is answered with 503."""


class _HubRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path).path
        self.server.asked.append((address, self.headers.get("Range", "")))
        # A folder is asked for with its slashes quoted, so it is one part.
        kind, *parts = [urllib.parse.unquote(part) for part in address.strip("/").split("/")]
        if self.server.broken and self.server.broken in address:
            self._answer(503)
        elif kind == "store":
            self._send("/".join(parts))
        elif kind == "api" and parts[0] == "datasets":
            self._describe("/".join(parts[1:3]), *parts[3:])
        elif kind == "datasets":
            self._resolve("/".join(parts[:2]), *parts[3:])
        else:
            self._answer(404)

    def _describe(self, name: str, verb: str = "", revision: str = "main", *folder: str) -> None:
        if self._refused(name, listing=True, revision=revision):
            return
        if verb != "tree":
            self._answer(200, body={"id": name})
        elif found := self._list("/".join([name, *folder, ""])):
            self._answer(200, body=found)
        else:
            self._answer(404, "EntryNotFound")

    def _list(self, prefix: str) -> list[dict[str, object]]:
        """Return what lies below OWNER/NAME/FOLDER/; paths count from the data set's root."""
        start = prefix.split("/", 2)[2]
        found: dict[str, dict[str, object]] = {}
        for path, content in sorted(self.server.files.items()):
            if not path.startswith(prefix):
                continue
            folders = path.removeprefix(prefix).split("/")[:-1]
            for depth in range(1, len(folders) + 1):
                folder = start + "/".join(folders[:depth])
                found[folder] = {"type": "directory", "oid": "x", "path": folder}
            file = start + path.removeprefix(prefix)
            found[file] = {"type": "file", "oid": "x", "path": file, "size": len(content)}
        if "recursive=true" not in self.path:
            found = {name: found[name] for name in found if "/" not in name.removeprefix(start)}
        return list(found.values())

    def _resolve(self, name: str, revision: str, *path: str) -> None:
        if not self._refused(name, listing=False, revision=revision):
            target = urllib.parse.quote("/".join(["", "store", name, *path]))
            self._answer(302, headers={"Location": target})

    def _send(self, path: str) -> None:
        body = self.server.files[path]
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1]
        self._answer(206, body=part, headers={"Content-Range": f"bytes {first}-{last}/{len(body)}"})

    def _refused(self, name: str, *, listing: bool, revision: str) -> bool:
        """Answer as the hub does to who may not see a data set."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        access = "public" if self.server.tokens.get(token) else self.server.access
        absent = not any(path.startswith(f"{name}/") for path in self.server.files)
        if token and token not in self.server.tokens:
            self._answer(401, message="Invalid credentials in Authorization header")
        elif absent or access == "private":
            self._answer(404 if token else 401, "RepoNotFound", "Repository not found")
        elif access == "gated" and not listing:
            self._answer(403 if token else 401, "GatedRepo", f"Access to {name} is restricted.")
        elif revision not in self.server.revisions:
            self._answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return False
        return True

    def _answer(
        self,
        status: int,
        code: str = "",
        message: str = "",
        *,
        body: object = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        told = {"Content-Length": str(len(content)), **(headers or {})}
        if code or message:
            told |= {"X-Error-Code": code, "X-Error-Message": message}
        self.send_response(status)
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
