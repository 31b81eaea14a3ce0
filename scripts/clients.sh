#!/usr/bin/env bash
# Generates clients from an OpenAPI document or from descriptors, and runs the programs of docs/clients with them.
#   clients.sh python|typescript OPENAPI-DOCUMENT URL KEY
#   clients.sh grpc-python|grpc-go DESCRIPTORS HOST:PORT KEY
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
  grpc-python)
    venv="$cache/grpc-python-$GRPCIO-$GOOGLEAPIS_COMMON_PROTOS"
    [ -e "$venv/whole" ] || {
      rm -rf "$venv" && python3 -m venv "$venv" || unavailable "a virtual environment of Python"
      "$venv/bin/pip" install --quiet "grpcio==$GRPCIO" "grpcio-tools==$GRPCIO" "googleapis-common-protos==$GOOGLEAPIS_COMMON_PROTOS" || unavailable grpcio
      touch "$venv/whole"
    }
    "$venv/bin/python" -m grpc_tools.protoc --descriptor_set_in="$document" --python_out="$work" --grpc_python_out="$work" \
      flotilla/edge/v1/edge.proto flotilla/todo/v1/todo.proto
    PYTHONPATH="$work" "$venv/bin/python" "$root/docs/clients/python/grpc_walk.py" "$url" "$key" ;;
  grpc-go)
    command -v go >/dev/null || unavailable "Go's compiler"
    bin="$cache/go-$PROTOC_GEN_GO-$PROTOC_GEN_GO_GRPC"
    [ -x "$bin/protoc-gen-go-grpc" ] || {
      GOBIN="$bin" go install "google.golang.org/protobuf/cmd/protoc-gen-go@v$PROTOC_GEN_GO" &&
        GOBIN="$bin" go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v$PROTOC_GEN_GO_GRPC"
    } || unavailable protoc-gen-go
    cp "$root"/docs/clients/go/* "$work"
    cd "$work"
    PATH="$bin:$PATH" "$root/scripts/buf.sh" generate "$document" --path flotilla/edge --path flotilla/todo
    go mod download || unavailable "a module of Go"
    go build -o walk .
    ./walk "$url" "$key" ;;
  *) echo "clients.sh: python, typescript, grpc-python or grpc-go, not $language" >&2; exit 2 ;;
esac
