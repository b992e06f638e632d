#!/usr/bin/env bash
# Which answers Tencent's SDK for CLS in Python tries again: the code in the body decides before the status. A 403
# with the code InternalError gets ten attempts, a second apart; a 429 with a code that the SDK does not know gets
# one, and so does a connection that is closed without an answer.
# Seen with tencentcloud-cls-sdk-python 1.0.9, requests 2.34.2. Runs for ten seconds.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" -q install tencentcloud-cls-sdk-python==1.0.9 protobuf==3.20.3 requests==2.34.2

cat > "$work/show.py" <<'PY'
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from tencentcloud.log import cls_pb2
from tencentcloud.log.logclient import LogClient
from tencentcloud.log.logexception import LogException

CASES = [
    # status, code, attempts
    (403, "InternalError", 10),
    (429, "RequestLimitExceeded", 1),
    (None, "", 1),
]


class Server(BaseHTTPRequestHandler):
    attempts, status, code = 0, 200, ""

    def do_POST(self):
        Server.attempts += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.status is None:
            self.close_connection = True
            return
        body = json.dumps({"errorcode": self.code, "errormessage": "no"}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("x-cls-requestid", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

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


for Server.status, Server.code, attempts in CASES:
    Server.attempts = 0
    began = time.monotonic()
    try:
        client.put_log_raw("11111111-2222-3333-4444-555555555555", batch())
        raise SystemExit("no error")
    except LogException as error:
        answer = f"{Server.status} {Server.code}" if Server.status else "closed without an answer"
        print(f"{answer}: {Server.attempts} attempts in {time.monotonic() - began:.0f} s, {error.get_error_code()}")
    assert Server.attempts == attempts, (Server.attempts, attempts)
PY
"$work/env/bin/python" "$work/show.py"
echo "as described"
