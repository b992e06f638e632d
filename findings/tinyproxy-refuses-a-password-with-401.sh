#!/usr/bin/env bash
# A proxy that wants a password answers 407 (RFC 9110, 15.5.8). tinyproxy does so when none is shown, and answers a
# wrong one with 401 and WWW-Authenticate, as if the server behind it had asked. A client that looks for 407 tells
# its user "tunnel failed" and nothing of a password.
# Seen with tinyproxy 1.11.1-2.1+deb12u1 of Debian 12, curl for the requests.
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'kill "${proxy:-0}" 2>/dev/null || true; rm -rf "$work"' EXIT
apt-get -qq download tinyproxy-bin=1.11.1-2.1+deb12u1
dpkg -x tinyproxy-bin_*.deb root

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > tinyproxy.conf <<CONF
Port $port
Listen 127.0.0.1
Timeout 10
BasicAuth user right
ConnectPort 443
CONF
root/usr/bin/tinyproxy -d -c tinyproxy.conf > log 2>&1 &
proxy=$!
for _ in $(seq 50); do
  (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
  sleep 0.1
done

# Prints the status with which the proxy answers CONNECT.
answer() {
  curl -s -o /dev/null -w '%{http_connect}' --max-time 5 --proxy "http://127.0.0.1:$port" "$@" https://cls.invalid/ || true
}
none=$(answer)
wrong=$(answer --proxy-user user:wrong)
printf 'no password: %s\na wrong password: %s\n' "$none" "$wrong"
[[ $none == 407 && $wrong == 401 ]]
echo "as described"
