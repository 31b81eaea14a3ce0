#!/usr/bin/env bash
# Prints the path of a program of a crate: the system's where it is of this version, or one that is built once into the user's cache.
# Fails where it cannot be had. Usage: scripts/cargo-tool.sh CRATE VERSION [ARGUMENT OF CARGO INSTALL...]
set -euo pipefail
crate=$1 version=$2
shift 2
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
folder="$cache/flotilla/$crate/$version"
# A subcommand of cargo says its own name, or that of the subcommand.
if [[ "$("$crate" --version 2>/dev/null || "$crate" "${crate#cargo-}" --version 2>/dev/null)" == *" $version" ]]; then
  command -v "$crate"
  exit
fi
[ -x "$folder/bin/$crate" ] || {
  trap 'rm -rf "$folder/target"' EXIT
  echo "building $crate $version (once, some minutes)" >&2
  CARGO_TARGET_DIR="$folder/target" cargo install --quiet --locked --root "$folder" "$@" "$crate@$version" >&2
}
echo "$folder/bin/$crate"
