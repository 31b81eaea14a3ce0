#!/usr/bin/env bash
# Writes images without a container engine: `images.sh FOLDER PROGRAM...` packs each program of target/$PROFILE (release) into
# FOLDER/PROGRAM.tar, an OCI archive named $REGISTRY/PROGRAM:$RELEASE, and writes FOLDER/PROGRAM.cdx.json, its bill of materials; that of
# a program of ours only for a release. An image holds the program, and what of Debian it needs: the C library, roots of trust and time
# zones; it runs as nobody. `pause` is a pod's first process; `postgres`, `nats-server` and
# `opensearch` and `redis` are the backing services that this machine runs, for a development cluster. The same inputs give the same digest.
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
  "${buildah[@]}" config --user 65532:65532 --entrypoint "[\"$3\"]" --created-by flotilla "${more[@]}" \
    --label org.opencontainers.image.title="$2" --label org.opencontainers.image.version="$release" \
    --label org.opencontainers.image.licenses="$licence" "$1"
  "${buildah[@]}" commit --quiet --timestamp 0 --format oci "$1" "oci-archive:$work/image.tar:$registry/$2:$release" >/dev/null
  "${buildah[@]}" rm "$1" >/dev/null
  # What has its name is whole, also from another disk.
  mv "$work/image.tar" "$folder/.$2.part"
  mv "$folder/.$2.part" "$folder/$2.tar"
}

put() { # container, file or folder, where
  "${buildah[@]}" copy --quiet "$1" "$2" "$3" >/dev/null
}

# Copies files of this machine, and the libraries that they are linked to, to the same paths below a folder.
taken() { # folder, file or folder...
  local to=$1 library
  shift
  mkdir -p "$to"
  (cd / && cp -a --parents "${@#/}" "$to")
  # A script is linked to nothing.
  { find "$@" -type f \( -perm -u+x -o -name '*.so*' \) -exec ldd {} ';' 2>/dev/null || true; } | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | sort -u \
    | while read -r library; do library="$(realpath "${library%/*}")/${library##*/}" && (cd / && cp -aL --parents "${library#/}" "$to"); done
}

# What the image of a backing service is made of, beside its archive.
bom_of_part() { # name, file or folder...
  local name=$1
  shift
  python3 infra/sbom.py "$folder/$name.cdx.json" "$work/root/var/lib/dpkg/status.d" "$name" "$@"
}

# The same of our programs, all at once.
boms() {
  scripts/sbom.sh "$work/boms" || { echo "images: without bills of materials, because cargo-cyclonedx cannot be had (scripts/sbom.sh)" >&2; mkdir -p "$work/boms"; }
}

for name in "$@"; do
  container=$("${buildah[@]}" from scratch)
  licence=$(of_all license) more=()
  if [ "$name" = pause ]; then
    cc -static -Os -s -o "$work/pause" infra/kube/pause.c
    put "$container" "$work/pause" /pause
    commit "$container" pause /pause
    continue
  fi
  [ -d "$work/root" ] || root
  put "$container" "$work/root" /
  case $name in
    nats-server | postgres | opensearch | redis)
      programs=$("target/$profile/flotilla" k8s programs) || { echo "images: make build comes first" >&2; exit 1; }
      eval "$programs"
      part="$work/$name"
      ;;
  esac
  case $name in
    nats-server)
      # At which it hands its clients over before it goes.
      licence=Apache-2.0 more=(--stop-signal SIGUSR2)
      put "$container" "$nats_server" /usr/local/bin/nats-server
      commit "$container" "$name" /usr/local/bin/nats-server
      bom_of_part "$name" "$nats_server"
      ;;
    postgres)
      # With the shell that initdb runs its server by, and what moves folders into place; without the compiler of queries, which is larger than all the rest.
      licence=PostgreSQL more=(--env "PATH=$postgres:/usr/bin:/bin" --stop-signal SIGINT)
      share=("$postgres/../share") && [ -d "${share[0]}" ] || share=("/usr/share/postgresql/$(basename "$(dirname "$postgres")")" /usr/share/postgresql-common)
      for path in "${!share[@]}"; do [ -d "${share[path]}" ] || unset "share[path]"; done
      taken "$part" "$(readlink -f "$(command -v dash)")" /usr/bin/{mkdir,mv,rm} "$(dirname "$postgres")" "${share[@]}"
      # And what backs it up, where this machine has that.
      if pgbackrest=$(command -v pgbackrest); then taken "$part" "$(readlink -f "$pgbackrest")"; else echo "images: without pgbackrest, nothing backs this PostgreSQL up" >&2; fi
      rm -rf "$part$(dirname "$postgres")"/lib/{bitcode,llvmjit.so} "$part"/usr/lib/*/libLLVM*
      mkdir -p "$part/bin" && ln -s "$(readlink -f "$(command -v dash)")" "$part/bin/sh"
      put "$container" "$part" /
      commit "$container" "$name" "$postgres/postgres"
      bom_of_part "$name" "$part"
      ;;
    redis)
      # What this machine has, or what was unpacked of Debian's package, with its libraries beside it.
      [ -n "${redis:-}" ] || { echo "images: Redis cannot be had (apt-get install redis-server)" >&2; exit 1; }
      licence=BSD-3-Clause more=(--env LD_LIBRARY_PATH=/usr/lib/redis)
      mkdir -p "$part/usr/bin" "$part/usr/lib/redis"
      cp -L "$redis" "$part/usr/bin/redis-server"
      LD_LIBRARY_PATH=$redis_libraries ldd "$redis" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | xargs cp -L --target-directory "$part/usr/lib/redis"
      rm -f "$part"/usr/lib/redis/{libc,libm,libpthread,libdl}.so.*
      put "$container" "$part" /
      commit "$container" "$name" /usr/bin/redis-server
      bom_of_part "$name" "$part"
      ;;
    opensearch)
      licence="Apache-2.0 AND GPL-2.0-only WITH Classpath-exception-2.0"
      home=$(dirname "$(dirname "$(readlink -f "$java")")")
      taken "$part" "$home"
      rm -f "$part$home/lib/src.zip" && rm -rf "$part$home/jmods"
      put "$container" "$part" /
      put "$container" "$opensearch_jars" /usr/share/opensearch
      commit "$container" "$name" "$home/bin/java"
      bom_of_part "$name" "$part" "$opensearch_jars"
      ;;
    *)
      program="target/$profile/$name"
      [ -x "$program" ] || { echo "images: $program is not built" >&2; exit 1; }
      install -m 755 "$program" "$work/$name"
      [ "$profile" = release ] || strip --strip-debug "$work/$name"
      put "$container" "$work/$name" "/usr/local/bin/$name"
      if [ "$name" = flotilla ]; then
        # It backs streams up by them.
        for tool in age age-keygen; do
          if path=$(command -v $tool); then put "$container" "$(readlink -f "$path")" /usr/bin/$tool; else echo "images: without $tool, flotilla backs no stream up" >&2; fi
        done
      fi
      rm "$work/$name"
      commit "$container" "$name" "/usr/local/bin/$name"
      [ "$profile" = release ] || continue
      [ -d "$work/boms" ] || boms
      if [ -e "$work/boms/$name.cdx.json" ]; then
        packages="$work/packages-$name"
        cp -a "$work/root/var/lib/dpkg/status.d" "$packages"
        if [ "$name" = flotilla ]; then dpkg-query --status age >"$packages/age" 2>/dev/null || rm "$packages/age"; fi
        python3 infra/sbom.py "$work/boms/$name.cdx.json" "$packages"
        mv "$work/boms/$name.cdx.json" "$folder/$name.cdx.json"
      fi
      ;;
  esac
done
