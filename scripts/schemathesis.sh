#!/usr/bin/env bash
# Calls a running fleet with what its description generates, and reports server errors, answers that are not described, and answers that
# do not fit their schema.
#   schemathesis.sh URL TOKEN SECONDS
# Ends with 3 where it cannot be had. Streams are left out: they do not end.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
. "$root/infra/versions.env"
venv="${XDG_CACHE_HOME:-$HOME/.cache}/flotilla/schemathesis-$SCHEMATHESIS" url=$1 token=$2 seconds=$3
[ -e "$venv/whole" ] || {
  rm -rf "$venv"
  { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet "schemathesis==$SCHEMATHESIS" >&2; } ||
    { echo "schemathesis.sh: schemathesis cannot be had" >&2; exit 3; }
  touch "$venv/whole"
}
# It writes beside where it runs.
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
"$venv/bin/st" run "$url/openapi.json" --url "$url" --header "Authorization: Bearer $token" --seed 20 --max-time "$seconds" \
  --phases examples,coverage,fuzzing,stateful --exclude-path-regex ':watch$' --request-timeout 10 --warnings off --no-color \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance
