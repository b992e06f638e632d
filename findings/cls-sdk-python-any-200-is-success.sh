#!/usr/bin/env bash
# Tencent's SDK for CLS in Python counts any 200 as "stored": a page of HTML, a body that tells of an error, and
# the 200 behind a redirect, although the redirect turned its POST into a GET without a body. A real answer of
# CLS has a request id (x-cls-requestid) and an empty body.
# Seen with tencentcloud-cls-sdk-python 1.0.9, requests 2.34.2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" -q install tencentcloud-cls-sdk-python==1.0.9 protobuf==3.20.3 requests==2.34.2

cat > "$work/show.py" <<'PY'
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from tencentcloud.log import cls_pb2
from tencentcloud.log.logclient import LogClient

ANSWERS = {
    "page": (200, {"Content-Type": "text/html"}, b"<html>Welcome</html>"),
    "error": (200, {"Content-Type": "application/json"},
              b'{"errorcode":"InternalError","errormessage":"no"}'),
    "redirect": (301, {"Location": "/elsewhere"}, b""),
}
seen = []


class Server(BaseHTTPRequestHandler):
    answer = ANSWERS["page"]

    def reply(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        seen.append((self.command, length > 0))
        status, headers, body = self.answer
        if self.path.startswith("/elsewhere"):
            status, headers, body = 200, {}, b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET = reply

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = LogClient(f"http://127.0.0.1:{server.server_port}", "AKIDEXAMPLE", "SECRETEXAMPLE")


def batch():
    groups = cls_pb2.LogGroupList()
    group = groups.logGroupList.add()
    group.filename, group.source = "f", "127.0.0.1"
    log = group.logs.add()
    log.time = int(time.time())
    content = log.contents.add()
    content.key, content.value = "content", "a line"
    return groups


for name, Server.answer in ANSWERS.items():
    seen.clear()
    client.put_log_raw("11111111-2222-3333-4444-555555555555", batch())
    print(f"{name}: no error; requests (method, has a body): {seen}")
    expected = [("POST", True)] + ([("GET", False)] if name == "redirect" else [])
    assert seen == expected, seen
PY
"$work/env/bin/python" "$work/show.py"
echo "as described: put_log_raw returned in all three cases"
