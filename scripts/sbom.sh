#!/usr/bin/env bash
# Writes what each program is made of, as CycloneDX: `sbom.sh FOLDER` writes FOLDER/PROGRAM.cdx.json for every program of the workspace.
# Uses the pinned cargo-cyclonedx, the system's or one that is built once into the user's cache; fails where it cannot be had.
set -euo pipefail
[ $# = 1 ] || { echo "sbom: say a folder" >&2; exit 2; }
folder=$(realpath -m "$1")
cd "$(dirname "$0")/.."
. infra/versions.env
program=$(scripts/cargo-tool.sh cargo-cyclonedx "$CARGO_CYCLONEDX")
# It writes beside each manifest; a name of its own, so that nothing else is taken for it.
SOURCE_DATE_EPOCH=0 "$program" cyclonedx --format json --describe binaries --no-build-deps --spec-version 1.5 -qq
mkdir -p "$folder"
here=${PWD// /%20}
for file in cli/*_bin.cdx.json services/*/*_bin.cdx.json; do
  name=$(basename "$file" _bin.cdx.json)
  sed "s|path+file://$here/|path+file:///flotilla/|g" "$file" >"$folder/$name.cdx.json"
done
rm -f {bench,cli,docs/consumers/rust}/*_bin.cdx.json services/*/*_bin.cdx.json
