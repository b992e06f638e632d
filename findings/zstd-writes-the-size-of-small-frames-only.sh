#!/usr/bin/env bash
# encode_all of the zstd crate states the content's size in a frame of less than 131,072 bytes of content, and in no
# larger one; before 0.14 in none. A reader that needs the size (decompress() of python-zstandard) works in tests
# with small batches, and raises with a large one.
# Seen with zstd 0.14.4, zstandard 0.25.0 (both with libzstd 1.5.7).
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'rm -rf "$work"' EXIT
cargo -q init --name show .
cargo -q add zstd@=0.14.4
cat > src/main.rs <<'RUST'
fn main() {
    for size in [131_071, 131_072] {
        let frame = zstd::stream::encode_all(&vec![b'x'; size][..], 3).unwrap();
        std::fs::write(format!("{size}.zst"), frame).unwrap();
    }
}
RUST
cargo -q run
python3 -m venv env
env/bin/pip -q install zstandard==0.25.0
cat > show.py <<'PY'
import zstandard

for size, stated in ((131_071, 131_071), (131_072, None)):
    frame = open(f"{size}.zst", "rb").read()
    says = zstandard.get_frame_parameters(frame).content_size
    says = None if says == zstandard.CONTENTSIZE_UNKNOWN else says
    try:
        got = len(zstandard.ZstdDecompressor().decompress(frame))
    except zstandard.ZstdError as error:
        got = f"raised: {error}"
    print(f"{size} bytes of content: the frame says {says}; decompress(): {got}")
    assert says == stated
    assert (got == size) == (stated is not None)
PY
env/bin/python show.py
echo "as described"
