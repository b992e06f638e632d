#!/usr/bin/env bash
# nginx logs a request that it could not read as `""` with 400. goaccess counts the line as valid, with the method
# "---" and an empty path; a request without protocol (`GET /old`, HTTP/0.9) loses method and path the same way.
# Seen with goaccess 1.7-1 of Debian 12.
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'rm -rf "$work"' EXIT
apt-get -qq download goaccess=1:1.7-1 libmaxminddb0 libncursesw6 libtinfo6 libssl3
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu

cat > access.log <<'LOG'
192.0.2.1 - - [30/Nov/2026:07:05:03 +0000] "GET /a HTTP/1.1" 200 5 "-" "curl/8"
192.0.2.1 - - [30/Nov/2026:07:05:04 +0000] "" 400 0 "-" "-"
192.0.2.1 - - [30/Nov/2026:07:05:05 +0000] "GET /old" 200 5 "-" "-"
LOG
root/usr/bin/goaccess access.log --no-global-config --log-format=COMBINED -o report.json > /dev/null
python3 - <<'PY'
import json

report = json.load(open("report.json"))
general = report["general"]
lines = {(row.get("method"), row["data"]) for panel in ("requests", "not_found", "static_requests")
         for row in report.get(panel, {}).get("data", [])}
print("valid lines:", general["valid_requests"], "refused:", general["failed_requests"])
print("method and path:", sorted(lines))
assert general["valid_requests"] == 3 and general["failed_requests"] == 0
assert ("GET", "/a") in lines and ("---", "") in lines and ("---", "-") in lines
PY
echo "as described"
