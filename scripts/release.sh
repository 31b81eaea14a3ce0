#!/usr/bin/env bash
# Builds for a release; takes more arguments for cargo, by default the whole workspace. The same sources and toolchain give the same bytes
# in every folder, at any time: no program holds a path of this machine, nor when it was built.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo_home=${CARGO_HOME:-$HOME/.cargo}
separator=$'\x1f'
export CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$PWD=/flotilla$separator--remap-path-prefix=$cargo_home=/cargo"
# The same for what is written in C, whose compiler notes the time otherwise.
export CC_SHELL_ESCAPED_FLAGS=1 SOURCE_DATE_EPOCH=0
export CFLAGS="'-ffile-prefix-map=$PWD=/flotilla' '-ffile-prefix-map=$cargo_home=/cargo'"
[ $# -gt 0 ] || set -- --workspace
exec cargo build --release --quiet "$@"
