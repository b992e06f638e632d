"""Uploads to a CLS endpoint with the official SDK, well and badly.

    upload.py ENDPOINT TOPIC_ID SECRET_ID SECRET_KEY

Prints one JSON object per attempt: {"case", "code"}, where code is the SDK's error code, or "ok" and
"request_id".
"""

import json
import struct
import sys

import lz4.block
import lz4.frame
import requests
from tencentcloud.log import cls_pb2
from tencentcloud.log.auth import signature
from tencentcloud.log.logclient import LogClient
from tencentcloud.log.logexception import LogException


def log_list(values, tags=()):
    """Returns a list with one group, whose logs have one value each."""
    group_list = cls_pb2.LogGroupList()
    group = group_list.logGroupList.add()
    group.contextFlow = "102700A66102516A-59F59"
    group.filename = "/var/log/app.log"
    group.source = "10.0.0.7"
    for key, value in tags:
        tag = group.logTags.add()
        tag.key, tag.value = key, value
    for number, value in enumerate(values):
        log = group.logs.add()
        log.time = 1700000000123 + number
        content = log.contents.add()
        content.key, content.value = "message", value
    return group_list


def report(case, attempt):
    try:
        answer = attempt()
        result = {"code": "ok", "request_id": answer.get_request_id()}
    except LogException as error:
        result = {"code": error.get_error_code(), "status": error.resp_status}
    print(json.dumps({"case": case, **result}), flush=True)


def report_raw(case, key, topic_id, endpoint, compression, body):
    """Sends a body that the SDK would not make, signed by the SDK's own function."""
    host = endpoint.split("://")[1].split(":")[0]
    headers = {
        "Host": host,
        "Content-Type": "application/x-protobuf",
        "x-cls-compress-type": compression,
    }
    params = {"topic_id": topic_id}
    headers["Authorization"] = signature(*key, "POST", "/structuredlog", params, headers, 300)
    url = endpoint + "/structuredlog"
    answer = requests.post(url, params=params, data=body, headers=headers, timeout=10)
    code = answer.json()["errorcode"]
    print(json.dumps({"case": case, "code": code, "status": answer.status_code}), flush=True)


def main(endpoint, topic_id, secret_id, secret_key):
    good = LogClient(endpoint, secret_id, secret_key)
    few = log_list(["plain", "启动完成 ok", ""], tags=[("container_name", "web-1"), ("env", "prod")])
    report("good", lambda: good.put_log_raw(topic_id, few))
    report("over quota once", lambda: good.put_log_raw(topic_id, log_list(["again"])))

    wrong_id = LogClient(endpoint, "AKIDunknown", secret_key)
    report("wrong id", lambda: wrong_id.put_log_raw(topic_id, few))
    wrong_key = LogClient(endpoint, secret_id, "wrong")
    report("wrong key", lambda: wrong_key.put_log_raw(topic_id, few))
    report("wrong topic", lambda: good.put_log_raw("11111111-2222-3333-4444-555555555555", few))
    report("group instead of list", lambda: good.put_log_raw(topic_id, few.logGroupList[0]))
    report("long value", lambda: good.put_log_raw(topic_id, log_list(["x" * (1024 * 1024 + 1)])))
    report("long body", lambda: good.put_log_raw(topic_id, log_list(["x" * 1024 * 1024] * 7)))
    report("reserved key", lambda: good.put_log_raw(topic_id, reserved_key()))

    key = (secret_id, secret_key)
    plain = few.SerializeToString()
    raw = [
        ("unknown compression", "gzip", plain),
        ("lz4 frame", "lz4", lz4.frame.compress(plain)),
        ("lz4 with its size", "lz4", struct.pack("<I", len(plain)) + lz4.block.compress(plain)[4:]),
        ("not lz4", "lz4", plain),
    ]
    for case, compression, body in raw:
        report_raw(case, key, topic_id, endpoint, compression, body)


def reserved_key():
    group_list = log_list(["x"])
    group_list.logGroupList[0].logs[0].contents[0].key = "__TIMESTAMP__"
    return group_list


if __name__ == "__main__":
    main(*sys.argv[1:])
