#!/usr/bin/env bash
# Builds the gateway of bench/peers from the fleet's protos, into the user's cache, and prints the path of its program.
# Ends with 3 where a part cannot be had.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
. "$root/infra/versions.env"
export GOTOOLCHAIN=local GOFLAGS=
unavailable() { echo "peers.sh: $1 cannot be had" >&2; exit 3; }
command -v go >/dev/null || unavailable "Go's compiler"
plugins=
for plugin in "google.golang.org/protobuf/cmd/protoc-gen-go $PROTOC_GEN_GO" "google.golang.org/grpc/cmd/protoc-gen-go-grpc $PROTOC_GEN_GO_GRPC" \
    "github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway $PROTOC_GEN_GRPC_GATEWAY"; do
  program=$("$root/scripts/go-tool.sh" ${plugin% *} ${plugin#* }) || unavailable "${plugin% *}"
  plugins+="$(dirname "$program"):"
done
"$root/scripts/buf.sh" --version >/dev/null 2>&1 || unavailable buf
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp "$root"/bench/peers/* "$work"
cd "$work"
PATH="$plugins$PATH" "$root/scripts/buf.sh" generate "$root/proto" --path "$root/proto/flotilla/edge" --path "$root/proto/flotilla/todo" >&2
go mod download >&2 || unavailable "a module of Go"
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
mkdir -p "$cache/flotilla/peers"
go build -o "$cache/flotilla/peers/grpc-gateway" . >&2
echo "$cache/flotilla/peers/grpc-gateway"
