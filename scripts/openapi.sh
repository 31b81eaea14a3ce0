#!/usr/bin/env bash
# Lints the API's description with two linters, fetched by npm into the user's cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/versions.env
cache="${XDG_CACHE_HOME:-$HOME/.cache}/flotilla/openapi/$SPECTRAL-$REDOCLY"
[ -e "$cache/whole" ] || {
  mkdir -p "$cache"
  npm install --silent --no-save --no-audit --no-fund --prefix "$cache" "@stoplight/spectral-cli@$SPECTRAL" "@redocly/cli@$REDOCLY" >&2
  touch "$cache/whole"
}
document=services/gateway/openapi.json
"$cache/node_modules/.bin/spectral" lint --quiet --fail-severity warn --ruleset infra/openapi/spectral.yaml "$document"
REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true "$cache/node_modules/.bin/redocly" lint --config infra/openapi/redocly.yaml "$document"
