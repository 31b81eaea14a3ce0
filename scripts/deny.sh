#!/usr/bin/env bash
# Checks licences, bans and sources of all dependencies (deny.toml), and advisories where their database is at hand. Uses the pinned
# cargo-deny, the system's or one that is built once into the user's cache. Where it cannot be had, it says so and checks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/versions.env
program=$(scripts/cargo-tool.sh cargo-deny "$CARGO_DENY" --no-default-features) || {
  echo "SKIPPED: licences, bans and sources are not checked, because cargo-deny could not be built" >&2
  exit 0
}
"$program" --all-features --log-level error check licenses bans sources
# Without a fetch: the database that was fetched before, if there is one.
if ! output=$("$program" --offline --all-features --log-level error check advisories 2>&1); then
  case $output in
    *advisory-db*"No such file"* | *"failed to load advisory database"*)
      echo "SKIPPED: advisories are not checked, because their database is not here (cargo deny fetch)" >&2 ;;
    *) echo "$output" >&2; exit 1 ;;
  esac
fi
