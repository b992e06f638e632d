#!/usr/bin/env bash
# logfmt of PyPI reads \" in a quoted value, and no other escape: at \t, as Go's writers make of a tab, the line is
# over for it. The pair becomes True, and all pairs behind it are gone, without an error. `key=` before another
# pair becomes True as well, not the empty text.
# Seen with logfmt 0.4.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" -q install logfmt==0.4

cat > "$work/show.py" <<'PY'
import logfmt

CASES = {
    r'level=info msg="a\"b" id=7': {"level": "info", "msg": 'a"b', "id": "7"},
    r'level=info msg="a\tb" id=7': {"level": "info", "msg": True},
    "level=error err= id=7": {"level": "error", "err": True, "id": "7"},
}
for line, expected in CASES.items():
    fields = next(logfmt.parse([line]))
    print(f"{line}  ->  {fields}")
    assert fields == expected, fields
PY
"$work/env/bin/python" "$work/show.py"
echo "as described"
