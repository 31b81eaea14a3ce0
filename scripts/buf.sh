#!/usr/bin/env bash
# Runs the pinned buf, fetched by npm into the user's cache.
set -euo pipefail
. "$(dirname "$0")/../infra/versions.env"
folder="${XDG_CACHE_HOME:-$HOME/.cache}/flotilla/buf/$BUF"
[ -x "$folder/node_modules/.bin/buf" ] || {
  mkdir -p "$folder"
  npm install --silent --no-save --no-audit --no-fund --prefix "$folder" "@bufbuild/buf@$BUF" >&2
}
exec "$folder/node_modules/.bin/buf" "$@"
