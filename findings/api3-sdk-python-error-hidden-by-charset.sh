#!/usr/bin/env bash
# Tencent's API 3.0 SDK for Python raises an error that the server tells in a 200 only if the Content-Type is
# exactly application/json (or another type): with "; charset=utf-8" behind it the same body becomes a response
# object in which every field is None.
# Seen with tencentcloud-sdk-python-cls 3.1.192, tencentcloud-sdk-python-common 3.1.195.
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
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile

BODY = json.dumps({"Response": {"Error": {"Code": "ResourceNotFound.TopicNotExist", "Message": "no"},
                                "RequestId": "r-1"}}).encode()


class Server(BaseHTTPRequestHandler):
    content_type = ""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", self.content_type)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
profile = HttpProfile(protocol="http", endpoint=f"127.0.0.1:{server.server_port}")
client = cls_client.ClsClient(credential.Credential("AKIDEXAMPLE", "SECRETEXAMPLE"), "ap-guangzhou",
                              ClientProfile(httpProfile=profile))
request = models.DescribeIndexRequest()
request.TopicId = "11111111-2222-3333-4444-555555555555"


def outcome():
    try:
        response = client.DescribeIndex(request)
        return f"no error, TopicId {response.TopicId}, RequestId {response.RequestId}"
    except TencentCloudSDKException as error:
        return f"raised {error.code}"


EXPECTED = {
    "application/json": "raised ResourceNotFound.TopicNotExist",
    "text/plain": "raised ResourceNotFound.TopicNotExist",
    "application/json; charset=utf-8": "no error, TopicId None, RequestId r-1",
}
for Server.content_type, expected in EXPECTED.items():
    seen = outcome()
    print(f"Content-Type {Server.content_type}: {seen}")
    assert seen == expected, seen
PY
"$work/env/bin/python" "$work/show.py"
echo "as described"
