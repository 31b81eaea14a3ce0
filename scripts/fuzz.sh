#!/usr/bin/env bash
# Fuzzes what the gateway reads of a request, with coverage, for some seconds: fuzz.sh [SECONDS]. Needs a C++ compiler.
# Inputs that it finds interesting stay in target/fuzz/corpus; one that fails is written to target/fuzz, and named.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60} corpus=target/fuzz/corpus
mkdir -p "$corpus"
command -v c++ >/dev/null || { echo "fuzz.sh: SKIPPED, there is no C++ compiler" >&2; exit 0; }
# cargo-fuzz's flags, without a sanitizer: those need a nightly compiler, and the gateway has no unsafe code.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Ccodegen-units=1"
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target, build scripts are built without these flags.
cargo build --quiet --release --manifest-path services/gateway/fuzz/Cargo.toml --target "$host" --target-dir target/fuzz/build
words=$(mktemp)
trap 'rm -f "$words"' EXIT
sed -n 's|^ *"\(/v1[^"{]*\).*|"\1"|p' services/gateway/openapi.json | sort -u >"$words"
printf '"%s"\n' title dueTime labels updateMask pageSize filter orderBy due_time 2026-12-24T18:00:00Z null true >>"$words"
exec "target/fuzz/build/$host/release/requests" -max_total_time="$seconds" -max_len=4096 -timeout=5 -rss_limit_mb=2048 \
  -dict="$words" -artifact_prefix=target/fuzz/ "$corpus"
