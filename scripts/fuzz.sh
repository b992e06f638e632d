#!/usr/bin/env bash
# Fuzzes every target for some seconds, two at a time: scripts/fuzz.sh [seconds] [target...]
#
# The inputs that are committed (fuzz/corpus) are where it begins; what it learns stays under
# target/fuzz. A failure leaves its input there, and says how to run it again.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

cd "$ROOT"
SECONDS_EACH=${1:-60}
TARGETS=("${@:2}")
if ((${#TARGETS[@]} == 0)); then
  for file in fuzz/targets/*.rs; do TARGETS+=("$(basename "$file" .rs | tr _ -)"); done
fi
LEARNT=$TARGET_DIR/fuzz
# What cargo-fuzz asks of the compiler, without a sanitizer: that would take a nightly compiler, and
# there is no unsafe code of ours to watch.
COVERAGE="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"

has c++ || install_packages "a C++ compiler" g++
say "building the fuzz targets"
# The profile of the tests, whose procedural macros and build scripts are there already, but faster.
RUSTFLAGS=$COVERAGE CARGO_PROFILE_QUICK_OPT_LEVEL=3 \
  cargo build --locked --quiet --package fuzz --profile quick --target "$TRIPLE" --bins

fuzz() {
  local name=$1 binary=$TARGET_DIR/$TRIPLE/quick/fuzz-$1 folder=$LEARNT/$1 input
  mkdir -p "$folder/corpus"
  if "$binary" -max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=1024 -max_len=65536 \
    -verbosity=0 -print_final_stats=1 -artifact_prefix="$folder/" \
    "$folder/corpus" "fuzz/corpus/$name" >"$folder/log" 2>&1; then
    echo "fuzz $name: ok, $(sed -n 's/^stat::number_of_executed_units: *//p' "$folder/log") inputs in $SECONDS_EACH s"
  else
    tail -n 40 "$folder/log" >&2
    # A backtrace is longer than that, and a machine of CI takes the input with it.
    grep -A 4 -m 1 "panicked at" "$folder/log" >&2 || true
    input=$(sed -n 's/.*Test unit written to //p' "$folder/log" | tail -n 1)
    [[ ! -f $input ]] || echo "$input in base64: $(base64 -w 0 "$input")" >&2
    echo "fuzz $name: FAILED; again with: $binary <the file that is named above>"
    return 1
  fi
}

say "fuzzing ${TARGETS[*]}, $SECONDS_EACH s each"
failed=0
for ((i = 0; i < ${#TARGETS[@]}; i += 2)); do
  running=()
  for name in "${TARGETS[@]:i:2}"; do
    fuzz "$name" &
    running+=($!)
  done
  for pid in "${running[@]}"; do wait "$pid" || failed=1; done
done
((failed == 0)) || die "fuzzing found a fault"
