#!/usr/bin/env bash
# Builds the programs of a Kubernetes node and its control plane into the user's cache, once, from the Go modules that
# infra/kube pins, and fetches kubectl. Prints their folder; with --folder it does nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/versions.env
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print substr($2, 2); exit }' infra/kube/kube/go.mod)
folder="$cache/flotilla/kube/$kubernetes-$(cat infra/kube/*/*.{mod,sum,go} | sha256sum | cut -c1-12)"
[ "${1:-}" != --folder ] || { echo "$folder"; exit; }
mkdir -p "$folder"
exec 9>"$folder.lock"
flock 9
version="-X k8s.io/component-base/version.gitVersion=v$kubernetes -X k8s.io/component-base/version.gitMajor=${kubernetes%%.*} -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$kubernetes")"
programs=(etcd containerd containerd-shim-runc-v2 ctr kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy coredns)
is_built() { local program; for program in "${programs[@]}"; do [ -x "$folder/$program" ] || return 1; done; }
build() { # module of infra/kube, package, program
  [ ! -x "$folder/$3" ] || return 0
  local started=$SECONDS
  (cd "infra/kube/$1" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOCACHE="$folder/gocache" go build -trimpath -ldflags "-s -w $version" -o "$folder/$3.part" "$2") >&2
  mv "$folder/$3.part" "$folder/$3"
  echo "built $3: $((SECONDS - started)) s" >&2
}
if ! is_built; then
  needed=$(sed -n 's/^go //p' infra/kube/*/go.mod | sort -V | tail -n 1)
  found=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || found=
  found=${found#go}
  [ "$(printf '%s\n' "$needed" "${found:-0}" | sort -V | head -n 1)" = "$needed" ] \
    || { echo "the programs of a cluster need Go $needed or newer on the PATH (there is: ${found:-none}): https://go.dev/dl" >&2; exit 1; }
  [ "$(df --output=avail -k "$folder" | tail -1)" -gt 8388608 ] || { echo "building Kubernetes takes 8 GiB of disk meanwhile: make room in $folder" >&2; exit 1; }
  echo "building Kubernetes $kubernetes (once: some 15 minutes of one processor, 8 GiB of disk meanwhile, 0.6 GiB afterwards beside Go's own caches)" >&2
  build etcd go.etcd.io/etcd/server/v3 etcd
  for program in containerd containerd-shim-runc-v2 ctr; do build containerd "github.com/containerd/containerd/v2/cmd/$program" "$program"; done
  build coredns flotilla/coredns coredns
  for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do build kube "k8s.io/kubernetes/cmd/$program" "$program"; done
fi
rm -rf "$folder/gocache"
ln -sfn "$(scripts/kubectl.sh)" "$folder/kubectl"
echo "$folder"
