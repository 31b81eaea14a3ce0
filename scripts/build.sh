#!/usr/bin/env bash
# Builds every program and every test of the workspace in one go, so that nothing is built twice.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
free=$(df --output=avail -BG . | tail -n 1 | tr -dc 0-9)
[ -d target/debug ] || [ "$free" -ge 13 ] || echo "only $free GB of disk are free: a build and its tests take up to 13 (with CARGO_INCREMENTAL=0: 8)" >&2
echo "building the workspace (some minutes the first time, seconds afterwards)"
cargo build --workspace --all-targets --quiet
echo "built after $((SECONDS - started)) s"
