#!/usr/bin/env bash
# Prints the path of a program of a Go module, built once into the user's cache. Fails where it cannot be had.
# Usage: scripts/go-tool.sh PACKAGE VERSION
set -euo pipefail
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
name=$(basename "$1")
# The name of a package may end with its module's major version.
[[ $name =~ ^v[0-9]+$ ]] && name=$(basename "$(dirname "$1")")
folder="$cache/flotilla/$name/$2"
[ -x "$folder/$name" ] || GOTOOLCHAIN=local GOFLAGS='' GOBIN="$folder" go install "$1@v$2" >&2
echo "$folder/$name"
