#!/usr/bin/env bash
# The retryer of Tencent's API 3.0 SDK for Python repeats a call that was refused for its rate, and gets its good
# answer, but hands on the first refusal all the same.
# Seen with tencentcloud-sdk-python-cls 3.1.192, tencentcloud-sdk-python-common 3.1.195. Runs for three seconds.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" -q install tencentcloud-sdk-python-cls==3.1.192 tencentcloud-sdk-python-common==3.1.195

cat > "$work/show.py" <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from tencentcloud.cls.v20201016 import cls_client, models
from tencentcloud.common import credential
from tencentcloud.common import retry
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile

REFUSED = {"Response": {"Error": {"Code": "RequestLimitExceeded", "Message": "slower"}, "RequestId": "r"}}
GOOD = {"Response": {"TopicId": "t", "RequestId": "r"}}


class Server(BaseHTTPRequestHandler):
    requests = 0

    def do_POST(self):
        Server.requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(REFUSED if Server.requests == 1 else GOOD).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint=f"127.0.0.1:{server.server_port}"))
profile.retryer = retry.StandardRetryer(max_attempts=3)
client = cls_client.ClsClient(credential.Credential("AKIDEXAMPLE", "SECRETEXAMPLE"), "ap-guangzhou", profile)
request = models.DescribeIndexRequest()
request.TopicId = "t"
try:
    client.DescribeIndex(request)
    seen = "a response"
except TencentCloudSDKException as error:
    seen = f"raised {error.code}"
print(f"refused once, then answered: {Server.requests} requests, {seen}")
assert Server.requests > 1 and seen == "raised RequestLimitExceeded", seen
PY
"$work/env/bin/python" "$work/show.py"
echo "as described"
