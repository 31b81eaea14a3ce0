#!/usr/bin/env bash
# What must hold beside the tests: formatting, lints, contracts, generated files, scripts and pages.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { # what, command...
  local what=$1 started=$SECONDS
  shift
  "$@" || { echo "check failed: $what" >&2; exit 1; }
  echo "checked $what: $((SECONDS - started)) s"
}
links_lead_somewhere() {
  local page link bad=0
  for page in $(git ls-files '*.md' ':!templates'); do
    for link in $(grep -oE '\]\([^)#: ]+' "$page" | cut -c3- || true); do
      [ -e "$(dirname "$page")/$link" ] || { echo "$page: $link leads nowhere" >&2; bad=1; }
    done
  done
  return $bad
}
every_code_is_explained() {
  local code bad=0
  for code in $(git grep -hoE '"[A-Z][A-Z]+(_[A-Z]+)+"' -- 'services/gateway/src/problem.rs' 'services/gateway/src/http.rs' \
      'services/*/src/commands.rs' 'crates/service/src/*.rs' | tr -d '"' | grep -vE '^(FLOTILLA|TODO_STATUS)' | sort -u); do
    case $code in FLOTILLA_*|UPDATE_*|CARGO_*|OUT_DIR) continue ;; esac
    grep -q "^## $code\$" docs/errors.md services/*/errors.md || { echo "no errors.md explains $code" >&2; bad=1; }
  done
  return $bad
}
# Each alert has a runbook that is there, with the heading that it names, and a test that makes it fire.
alerts_can_be_acted_on() {
  local line page anchor name bad=0
  for line in $(grep -oE 'runbook: [^ ]+' infra/prometheus/rules.yml | cut -d' ' -f2 | sort -u); do
    page=${line%%#*} anchor=
    case $line in *#*) anchor=${line#*#} ;; esac
    [ -f "$page" ] || { echo "the runbook $page is not there" >&2; bad=1; continue; }
    [ -z "$anchor" ] || grep -q "^## $anchor\$" "$page" || { echo "$page has no heading $anchor" >&2; bad=1; }
  done
  for name in $(grep -oE 'alert: \w+' infra/prometheus/rules.yml | cut -d' ' -f2); do
    grep -q "alertname: $name\$" infra/prometheus/rules.test.yml || { echo "no test makes $name fire" >&2; bad=1; }
  done
  return $bad
}
# Whoever takes one of the two alone may choose; the workspace has all of it.
features_stand_alone() {
  local crate features
  for crate in outbox consumer; do
    for features in "" operate trace $([ $crate = outbox ] || echo replay backstop inbox inbox,backstop); do
      cargo clippy --quiet --package $crate --no-default-features --features "$features" -- -D warnings || return 1
    done
  done
}
scripts_are_bash() {
  local script bad=0
  for script in scripts/*.sh .ci/run bin/flotilla; do bash -n "$script" || bad=1; done
  return $bad
}
the_lock_is_whole() { cargo metadata --locked --format-version 1 --quiet >/dev/null; }
step "formatting" cargo fmt --all --check
step "formatting of the fuzz target" rustfmt --edition 2024 --check services/gateway/fuzz/fuzz_targets/requests.rs
step "lints" cargo clippy --workspace --all-targets --quiet -- -D warnings
step "features of outbox and consumer" features_stand_alone
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
step "proto style (buf lint)" scripts/buf.sh lint proto
step "proto compatibility (buf breaking)" scripts/buf.sh breaking proto --against proto/baseline.binpb
step "the API's description (spectral, redocly)" scripts/openapi.sh
step "the manifest's lock" the_lock_is_whole
step "licences, bans and sources of dependencies" scripts/deny.sh
step "migrations that were released" sha384sum --check --quiet infra/released-migrations.sha384
step "shell scripts" scripts_are_bash
step "manifests and workflows" scripts/manifests.sh
step "secrets in the history" scripts/secrets.sh
step "links between pages" links_lead_somewhere
step "error pages" every_code_is_explained
step "alerts: configuration and rules (promtool)" scripts/promtool.sh check config infra/prometheus/prometheus.yml
step "alerts: each fires (promtool)" scripts/promtool.sh test rules infra/prometheus/rules.test.yml
step "alerts: runbooks and tests" alerts_can_be_acted_on
