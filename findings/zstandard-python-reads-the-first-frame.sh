#!/usr/bin/env bash
# A zstd stream may be several frames one after the other (RFC 8878, 3.1); writers that append make such ones.
# decompress() of python-zstandard returns the first frame alone, without an error. max_output_size is no bound
# for a frame that states its size.
# Seen with zstandard 0.25.0 (libzstd 1.5.7).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" -q install zstandard==0.25.0

cat > "$work/show.py" <<'PY'
import io

import zstandard

first, second = b"first line\n" * 10, b"second line\n" * 10
frame = zstandard.ZstdCompressor().compress
both = frame(first) + frame(second)
decompressor = zstandard.ZstdDecompressor()
one = decompressor.decompress(both)
print(f"decompress() of two frames: {len(one)} of {len(first + second)} bytes")
assert one == first
all_of_it = decompressor.stream_reader(io.BytesIO(both), read_across_frames=True).read()
print(f"stream_reader(read_across_frames=True): {len(all_of_it)} bytes")
assert all_of_it == first + second
bounded = decompressor.decompress(frame(first), max_output_size=1)
print(f"decompress(max_output_size=1): {len(bounded)} bytes")
assert bounded == first
PY
"$work/env/bin/python" "$work/show.py"
echo "as described"
