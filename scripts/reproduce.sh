#!/usr/bin/env bash
# Builds todo and packs its image in two clean clones of this repository, in folders of different names and at different times, and
# compares: one digest, one bill of materials. Takes a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] || { echo "reproduce: commit first: clones have what is committed" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for clone in "$work/one" "$work/another/and below"; do
  git clone --quiet . "$clone"
  (cd "$clone" && scripts/release.sh --package todo && scripts/images.sh target/images todo >/dev/null)
done
digest() { tar -xOf "$1/target/images/todo.tar" index.json | grep -o 'sha256:[0-9a-f]*' | head -n 1; }
one=$(digest "$work/one") another=$(digest "$work/another/and below")
[ "$one" = "$another" ] || { echo "reproduce: $one is not $another" >&2; exit 1; }
bill="$work/one/target/images/todo.cdx.json"
cmp "$bill" "$work/another/and below/target/images/todo.cdx.json"
for part in pkg:cargo/tokio@ pkg:deb/debian/libc6@; do
  grep -q "$part" "$bill" || { echo "reproduce: the bill of materials lacks $part" >&2; exit 1; }
done
size=$(gzip -c "$work/one/target/images/todo.tar" | wc -c)
[ "$size" -le 40000000 ] || { echo "reproduce: $size bytes, compressed, are more than 40 MB" >&2; exit 1; }
echo "todo is $one from both clones, $size bytes compressed"
