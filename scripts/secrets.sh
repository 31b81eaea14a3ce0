#!/usr/bin/env bash
# Looks for secrets in every commit (gitleaks, infra/gitleaks.toml), after it has seen that it finds what was committed and taken out again.
# Where gitleaks cannot be had, it says so and does not look.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/versions.env
skipped() { echo "SKIPPED: $1" >&2; exit 0; }
git rev-parse --git-dir >/dev/null 2>&1 || skipped "there is no history to look for secrets in"
[ "$(git rev-parse --is-shallow-repository)" = false ] || echo "SKIPPED: commits that this clone does not have are not searched for secrets (git fetch --unshallow)" >&2
gitleaks=$(scripts/go-tool.sh github.com/zricethezav/gitleaks/v8 "$GITLEAKS") || skipped "the history is not searched for secrets: gitleaks cannot be had"
readonly found=9
look() { # folder: $found where there is a secret
  "$gitleaks" git --no-banner --redact --log-level error --verbose --exit-code $found --config infra/gitleaks.toml "$1"
}

planted=$(mktemp -d)
trap 'rm -rf "$planted"' EXIT
git init --quiet "$planted"
in_planted() { git -C "$planted" -c user.name=nobody -c user.email=nobody@localhost -c commit.gpgsign=false "$@"; }
# In two parts, or this file would be one of the places.
seed="SU""AIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4"
key="fl""k_$(printf %032d 1)_$(printf %064d 2)"
printf "seed: %s\nkey: %s\n" "$seed" "$key" >"$planted/notes.txt"
in_planted add notes.txt
in_planted commit --quiet --message "notes"
in_planted rm --quiet notes.txt
in_planted commit --quiet --message "no notes"
report=$(look "$planted" 2>&1) && code=0 || code=$?
[ "$code" = $found ] && grep -q nats-seed <<<"$report" && grep -q flotilla-api-key <<<"$report" || { echo "secrets: gitleaks does not find what was planted ($code): $report" >&2; exit 1; }

look . && code=0 || code=$?
[ "$code" = 0 ] || [ "$code" = $found ] || { echo "secrets: gitleaks failed ($code)" >&2; exit 1; }
[ "$code" = 0 ] || { echo "secrets: the history holds a secret. Replace it where it is used; then take it out of the history, or, where it is none, say so in infra/gitleaks.toml" >&2; exit 1; }
