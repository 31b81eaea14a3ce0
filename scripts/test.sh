#!/usr/bin/env bash
# All tests. The parts that they share are started by the first and stop by themselves after the last; a fleet that
# runs beside this (make run) is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
# A snapshot that differs fails, and nothing is written; INSTA_UPDATE=always writes them anew.
export INSTA_UPDATE="${INSTA_UPDATE:-no}"
cargo test --workspace --all-targets --no-fail-fast "$@"
cargo test --workspace --doc --quiet
