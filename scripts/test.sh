#!/usr/bin/env bash
# All tests. The parts that they share are started by the first and stop by themselves after the last; a fleet that
# runs beside this (make run) is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
# A snapshot that differs fails, and nothing is written; INSTA_UPDATE=always writes them anew.
export INSTA_UPDATE="${INSTA_UPDATE:-no}"
# For one test alone: a restore from backups.
lacks_backups() { ! { command -v pgbackrest && command -v age; } >/dev/null; }
if lacks_backups && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -z "${FLOTILLA_NO_INSTALL:-}" ]; then
  echo "installing what backups are made by: pgbackrest age"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends pgbackrest age; } >/dev/null || true
fi
if lacks_backups; then echo "SKIPPED: no backup is made and restored, because pgbackrest and age cannot be had" >&2; fi
cargo test --workspace --all-targets --no-fail-fast "$@"
cargo test --workspace --doc --quiet
