#!/usr/bin/env bash
# Runs promtool: the system's, or that of Debian's package, unpacked into the user's cache without being installed.
set -euo pipefail
if command -v promtool >/dev/null; then exec promtool "$@"; fi
folder="${XDG_CACHE_HOME:-$HOME/.cache}/flotilla/promtool"
# What `flotilla up --observe` has unpacked holds it, too.
observed="${XDG_CACHE_HOME:-$HOME/.cache}/flotilla/prometheus/usr/bin/promtool"
if [ -x "$observed" ]; then exec "$observed" "$@"; fi
[ -x "$folder/usr/bin/promtool" ] || {
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  (cd "$work" && { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } >/dev/null 2>&1 \
    && dpkg -x prometheus_*.deb unpacked) || {
    echo "promtool cannot be had: apt-get install prometheus, or put promtool on the PATH (https://prometheus.io/download)" >&2
    exit 1
  }
  mkdir -p "$folder"
  cp -r "$work/unpacked/." "$folder/"
}
"$folder/usr/bin/promtool" "$@"
