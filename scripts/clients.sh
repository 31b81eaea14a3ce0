#!/usr/bin/env bash
# Generates clients from an OpenAPI document, and runs the programs of docs/clients with them.
#   clients.sh python|typescript DOCUMENT URL KEY
# Ends with 3 where a registry cannot be had.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
. "$root/infra/versions.env"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/flotilla/clients" language=$1 document=$2 url=$3 key=$4
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
unavailable() { echo "clients.sh: $1 cannot be had" >&2; exit 3; }
case $language in
  python)
    venv="$cache/python-$OPENAPI_PYTHON_CLIENT"
    [ -e "$venv/whole" ] || {
      rm -rf "$venv" && python3 -m venv "$venv" || unavailable "a virtual environment of Python"
      "$venv/bin/pip" install --quiet "openapi-python-client==$OPENAPI_PYTHON_CLIENT" || unavailable openapi-python-client
      touch "$venv/whole"
    }
    "$venv/bin/openapi-python-client" generate --path "$document" --meta none --output-path "$work/flotilla_client" >"$work/said" 2>&1 ||
      { cat "$work/said" >&2; exit 1; }
    PYTHONPATH="$work" "$venv/bin/python" "$root/docs/clients/python/walk.py" "$url" "$key" ;;
  typescript)
    modules="$cache/typescript-$OPENAPI_TYPESCRIPT-$OPENAPI_FETCH"
    [ -e "$modules/whole" ] || {
      mkdir -p "$modules"
      npm install --silent --no-save --no-audit --no-fund --prefix "$modules" "openapi-typescript@$OPENAPI_TYPESCRIPT" \
        "openapi-fetch@$OPENAPI_FETCH" "typescript@$TYPESCRIPT" "@types/node@$TYPES_NODE" >&2 || unavailable openapi-typescript
      touch "$modules/whole"
    }
    bin="$modules/node_modules/.bin"
    ln -s "$modules/node_modules" "$work/node_modules"
    "$bin/openapi-typescript" "$document" --output "$work/flotilla.d.ts" >"$work/said" 2>&1 || { cat "$work/said" >&2; exit 1; }
    cp "$root/docs/clients/typescript/walk.ts" "$work/walk.mts"
    cd "$work"
    "$bin/tsc" --strict --noUncheckedIndexedAccess --target es2022 --module nodenext --skipLibCheck --types node --outDir "$work/out" "$work/walk.mts"
    ln -s "$modules/node_modules" "$work/out/node_modules"
    node "$work/out/walk.mjs" "$url" "$key" ;;
  *) echo "clients.sh: python or typescript, not $language" >&2; exit 2 ;;
esac
