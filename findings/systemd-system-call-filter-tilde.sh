#!/usr/bin/env bash
# In a unit's SystemCallFilter= the ~ of "all but" counts at the start of the line only. Behind another group it is
# a name that does not exist, which is ignored, and the groups after it are allowed; systemd-analyze verify prints
# that and ends with 0. It takes a second line.
# Seen with systemd 252.39-1~deb12u2 of Debian 12.
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'rm -rf "$work"' EXIT
apt-get -qq download systemd=252.39-1~deb12u2 libsystemd-shared=252.39-1~deb12u2 libseccomp2 libcap2 libacl1 libcrypt1 libkmod2 libmount1 \
  libblkid1 libfdisk1 libip4tc2 libcryptsetup12 libselinux1 libpam0g libssl3 libapparmor1 libaudit1 \
  libcap-ng0 libdevmapper1.02.1 libjson-c5 libargon2-1 libpcre2-8-0 liblz4-1 libzstd1 liblzma5 libgcrypt20 \
  libgpg-error0
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu:$work/root/lib/systemd:$work/root/usr/lib/x86_64-linux-gnu/systemd
analyze=root/usr/bin/systemd-analyze
"$analyze" --version | head -1

unit() {
  printf '[Service]\nExecStart=/bin/true\nNoNewPrivileges=yes\n%s\n' "$1" > example.service
}
unit "SystemCallFilter=@system-service ~@resources"
"$analyze" verify ./example.service > out 2>&1
echo "verify, on one line: status 0, and"
grep "~@resources" out | sed 's/^.*example.service/  example.service/'
grep -q "ignoring: ~@resources" out
unit "SystemCallFilter=@system-service
SystemCallFilter=~@resources"
"$analyze" verify ./example.service > out 2>&1
if grep -q ignoring out; then exit 1; fi
echo "on two lines: nothing is ignored"
echo "as described"
