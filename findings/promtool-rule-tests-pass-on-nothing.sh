#!/usr/bin/env bash
# `promtool test rules` says SUCCESS, with status 0, to a test of an alert that no rule has, and to rule_files that
# match no file (a warning goes to stderr). So a rule that was renamed or moved goes on "tested".
# Seen with prometheus 2.42.0+ds-5+deb12u1 of Debian 12.
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'rm -rf "$work"' EXIT
apt-get -qq download prometheus=2.42.0+ds-5+deb12u1
dpkg -x prometheus_*.deb root

cat > rules.yml <<'YML'
groups:
  - name: example
    rules:
      - alert: NothingArrives
        expr: m > 0
YML
# Writes a test of the alert $2, with the rules in $1.
test_of() {
  cat > test.yml <<YML
rule_files: ["$1"]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series: [{series: m, values: "0+1x10"}]
    alert_rule_test: [{eval_time: 5m, alertname: $2}]
YML
}
promtool=root/usr/bin/promtool
test_of rules.yml NothingArrives
if "$promtool" test rules test.yml > out 2>&1; then exit 1; fi
echo "an alert that fires and is not expected: fails, as it should"
test_of rules.yml NothingArives
"$promtool" test rules test.yml > out 2>&1
echo "an alert that no rule has: $(grep -o SUCCESS out), status 0"
grep -q SUCCESS out
test_of "other-*.yml" NothingArrives
"$promtool" test rules test.yml > out 2>&1
echo "rule_files that match nothing: $(grep -o 'WARNING.*' out), $(grep -o SUCCESS out), status 0"
grep -q WARNING out && grep -q SUCCESS out
echo "as described"
