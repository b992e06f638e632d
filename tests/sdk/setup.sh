#!/bin/sh
# Makes a virtual environment with the official CLS SDK for Python and Kubernetes's schemas, once.
#
#   tests/sdk/setup.sh [DIR]      DIR defaults to target/sdk-venv
#
# A second run with the same requirements does nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/../../target/sdk-venv}
if cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    exit 0
fi
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    echo "python3 with venv is missing: apt-get install python3-venv" >&2
    exit 1
fi
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    --requirement "$here/requirements.txt"
cp "$here/requirements.txt" "$venv/installed.txt"
