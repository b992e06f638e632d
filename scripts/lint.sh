#!/usr/bin/env bash
# Checks format, lints, documentation and dependencies.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

cd "$ROOT"
# Without optimisation: it runs for a second, and would be built for minutes.
has cargo-deny || { say "installing cargo-deny"; cargo install --locked --quiet --debug cargo-deny; }
# The profile and the target of the tests: what builds them is there already, or will be.
quick=(--locked --profile quick --target "$TRIPLE")

say "format"
cargo fmt --all --check

say "lints"
cargo clippy "${quick[@]}" --workspace --all-targets --all-features --quiet -- -D warnings

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc "${quick[@]}" --workspace --no-deps --document-private-items --quiet

say "dependencies"
cargo deny --locked check bans licenses sources
# The database of advisories is a git repository on the network.
if cargo deny --locked fetch db >/dev/null 2>&1; then
  cargo deny --locked check advisories
else
  echo "advisories: not checked, the database can't be had here"
fi

# deny.toml forbids crates by who uses them; features unify over the workspace there, so what is
# really built into the driver is asked for on its own.
say "the driver's dependencies"
forbidden='reqwest|regex|axum|hmac|sha1|lz4_flex|zstd'
found=$(cargo tree --locked --package driver --edges normal --prefix none | grep -E "^($forbidden) v" || true)
[[ -z $found ]] || die "the driver may not depend on:"$'\n'"$found"

if has shellcheck; then
  say "scripts"
  shellcheck --external-sources scripts/*.sh findings/*.sh .ci/run
fi
