#!/usr/bin/env bash
# Tencent's API 3.0 SDK for Python asks whether the host stands in the text of NO_PROXY. So a domain
# ("tencentcloudapi.com", ".tencentcloudapi.com") and "*", which curl, Go and requests understand, exclude nothing:
# the call goes through the proxy. Only the whole name of the host does.
# Seen with tencentcloud-sdk-python-cls 3.1.192, tencentcloud-sdk-python-common 3.1.195.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" -q install tencentcloud-sdk-python-cls==3.1.192 tencentcloud-sdk-python-common==3.1.195

cat > "$work/show.py" <<'PY'
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from tencentcloud.cls.v20201016 import cls_client, models
from tencentcloud.common import credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile

ANSWER = b'{"Response": {"RequestId": "by-the-proxy"}}'
# A name that no server answers to: without the proxy the call fails.
HOST = "cls.tencentcloudapi.invalid"


class Proxy(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Proxy)
threading.Thread(target=server.serve_forever, daemon=True).start()
for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
    os.environ[name] = f"http://127.0.0.1:{server.server_port}"
request = models.DescribeIndexRequest()
request.TopicId = "11111111-2222-3333-4444-555555555555"


def road(no_proxy):
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = no_proxy
    profile = HttpProfile(protocol="http", endpoint=HOST, reqTimeout=5)
    client = cls_client.ClsClient(credential.Credential("AKIDEXAMPLE", "SECRETEXAMPLE"), "ap-guangzhou",
                                  ClientProfile(httpProfile=profile))
    try:
        client.DescribeIndex(request)
        return "by the proxy"
    except TencentCloudSDKException:
        return "direct"


EXPECTED = {
    HOST: "direct",
    "tencentcloudapi.invalid": "by the proxy",
    ".tencentcloudapi.invalid": "by the proxy",
    "*": "by the proxy",
}
for no_proxy, expected in EXPECTED.items():
    seen = road(no_proxy)
    print(f"NO_PROXY={no_proxy}: {HOST} is asked {seen}")
    assert seen == expected, seen
PY
"$work/env/bin/python" "$work/show.py"
echo "as described"
