#!/usr/bin/env bash
# Builds every program and every test of the workspace in one go, so that nothing is built twice.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
echo "building the workspace (some minutes the first time, seconds afterwards)"
cargo build --workspace --all-targets --quiet
echo "built after $((SECONDS - started)) s"
