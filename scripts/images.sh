#!/usr/bin/env bash
# Writes images without a container engine: `images.sh FOLDER PROGRAM...` packs each program of target/$PROFILE (release) into
# FOLDER/PROGRAM.tar, an OCI archive named $REGISTRY/PROGRAM:$RELEASE. An image holds the program, and what of Debian it needs:
# the C library, roots of trust and time zones; it runs as nobody. `pause` is a pod's first process. The same inputs give the same digest.
set -euo pipefail
export LC_ALL=C
umask 022
[ $# -ge 2 ] || { echo "images: say a folder, and the programs" >&2; exit 2; }
folder=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."
command -v buildah >/dev/null || { echo "images: apt-get install buildah" >&2; exit 1; }
# buildah writes into two folders of the machine, whatever it is asked: it sees empty ones of its own.
covers=(/var/lib/containers /etc/cni)
here=$(readlink /proc/self/ns/mnt)
if [ "$(id -u)" = 0 ] && [ "${FLOTILLA_IMAGES_APART:-$here}" = "$here" ]; then
  made=()
  for covered in "${covers[@]}"; do if mkdir "$covered" 2>/dev/null; then made+=("$covered"); fi; done
  trap '[ ${#made[@]} = 0 ] || rmdir "${made[@]}" || true' EXIT
  FLOTILLA_IMAGES_APART=$here unshare --mount scripts/images.sh "$folder" "$@"
  exit
fi
if [ "$(id -u)" = 0 ]; then for covered in "${covers[@]}"; do mount -t tmpfs tmpfs "$covered"; done; fi
profile=${PROFILE:-release} registry=${REGISTRY:-localhost/flotilla}
# What the manifest of the workspace says of all packages.
of_all() { sed -n "/^\[workspace.package\]/,/^\[/s/^$1 = \"\(.*\)\"/\1/p" Cargo.toml; }
release=${RELEASE:-$(of_all version)}
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
buildah=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)

# Debian's packages, unpacked and not installed.
root() {
  local package packages=(base-files netbase tzdata ca-certificates libc6 libgcc-s1)
  mkdir -p "$work/packages" "$work/root/tmp" "$work/root/var/lib/dpkg/status.d"
  (cd "$work/packages" && { apt-get download -qq "${packages[@]}" || {
    rm -f ./*.deb && apt-get update -qq && apt-get download -qq "${packages[@]}"; }; } >"$work/log" 2>&1) \
    || { cat "$work/log" >&2; echo "images: Debian's packages cannot be had (apt-get download)" >&2; exit 1; }
  for package in "$work"/packages/*.deb; do
    dpkg-deb --extract "$package" "$work/root"
    # What a scanner reads to know the packages.
    dpkg-deb --field "$package" >"$work/root/var/lib/dpkg/status.d/$(dpkg-deb --field "$package" Package)"
  done
  find "$work/root/usr/share/doc" -type f ! -name copyright -delete
  rm -rf "$work"/root/usr/share/{man,lintian,locale}
  cat "$work"/root/usr/share/ca-certificates/mozilla/*.crt >"$work/root/etc/ssl/certs/ca-certificates.crt"
  printf 'root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65532:65532:nobody:/:/sbin/nologin\n' >"$work/root/etc/passwd"
  printf 'root:x:0:\nnobody:x:65532:\n' >"$work/root/etc/group"
  chmod 1777 "$work/root/tmp"
}

# Of what `container` holds: who runs it, what it is, and when is never.
commit() { # container, name, path of the program
  "${buildah[@]}" config --user 65532:65532 --entrypoint "[\"$3\"]" --created-by flotilla \
    --label org.opencontainers.image.title="$2" --label org.opencontainers.image.version="$release" \
    --label org.opencontainers.image.licenses="$(of_all license)" "$1"
  "${buildah[@]}" commit --quiet --timestamp 0 --format oci "$1" "oci-archive:$work/image.tar:$registry/$2:$release" >/dev/null
  "${buildah[@]}" rm "$1" >/dev/null
  mv "$work/image.tar" "$folder/$2.tar"
}

for name in "$@"; do
  container=$("${buildah[@]}" from scratch)
  if [ "$name" = pause ]; then
    cc -static -Os -s -o "$work/pause" infra/kube/pause.c
    "${buildah[@]}" copy --quiet "$container" "$work/pause" /pause >/dev/null
    commit "$container" pause /pause
    continue
  fi
  program="target/$profile/$name"
  [ -x "$program" ] || { echo "images: $program is not built" >&2; exit 1; }
  [ -d "$work/root" ] || root
  "${buildah[@]}" copy --quiet "$container" "$work/root" / >/dev/null
  install -m 755 "$program" "$work/$name"
  [ "$profile" = release ] || strip --strip-debug "$work/$name"
  "${buildah[@]}" copy --quiet "$container" "$work/$name" "/usr/local/bin/$name" >/dev/null
  rm "$work/$name"
  commit "$container" "$name" "/usr/local/bin/$name"
done
