#!/usr/bin/env bash
# Loggers write times as seconds since 1970 with a fraction (zap's `ts`). jiff takes "1796000000.5" by the format
# "%s%.f" without an error, and the fraction is gone; chrono keeps it with the same format.
# Seen with jiff 1.0.2, chrono 0.4.45.
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'rm -rf "$work"' EXIT
cargo -q init --name show .
cargo -q add jiff@=1.0.2
cargo -q add chrono@=0.4.45 --no-default-features --features std,alloc
cat > src/main.rs <<'RUST'
fn main() {
    let text = "1796000000.5";
    let jiff = jiff::Timestamp::strptime("%s%.f", text).unwrap().as_nanosecond();
    let chrono = chrono::NaiveDateTime::parse_from_str(text, "%s%.f").unwrap();
    let chrono = i128::from(chrono.and_utc().timestamp_nanos_opt().unwrap());
    println!("{text} by %s%.f: jiff {jiff} ns, chrono {chrono} ns");
    assert_eq!(jiff, 1_796_000_000_000_000_000);
    assert_eq!(chrono, 1_796_000_000_500_000_000);
}
RUST
cargo -q run
echo "as described"
