#!/usr/bin/env bash
# Checks what no cluster is needed for: every overlay renders, and the base with its components, its objects are what the API of Kubernetes takes, no field misspelt
# (kubeconform, with schemas made of that API's own description), and what operators expect of them (kube-score); workflows (actionlint).
# What checks is built once into the user's cache. Where it cannot be had, it says so and does not check that.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/versions.env
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
cache="$cache/flotilla"
kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' infra/kube/kube/go.mod)
schemas="$cache/kubernetes-schemas/$kubernetes-$(sha256sum <infra/kube/schemas.py | cut -c1-12)"

skipped() { echo "SKIPPED: $1" >&2; }
described() {
  local module
  [ -d "$schemas" ] && return
  # Outside a module: what it needs to be built is not fetched.
  module=$(cd / && GOTOOLCHAIN=local GOFLAGS='' go mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p') && [ -n "$module" ] || return 1
  rm -rf "$schemas.part"
  python3 infra/kube/schemas.py "$module/api/openapi-spec/swagger.json" "$schemas.part" || { echo "manifests: infra/kube/schemas.py failed" >&2; exit 1; }
  mv "$schemas.part" "$schemas"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if kubectl=$(scripts/kubectl.sh); then
  for overlay in k8s/overlays/*/; do "$kubectl" kustomize "$overlay" >"$work/$(basename "$overlay").yaml"; done
  # The base with each component that needs no more of an overlay.
  for component in cert-manager external-secrets; do
    mkdir "$work/$component"
    printf 'resources: [%s]\ncomponents: [%s]\n' "$(realpath --relative-to "$work/$component" k8s/base)" \
      "$(realpath --relative-to "$work/$component" "k8s/components/$component")" >"$work/$component/kustomization.yaml"
    "$kubectl" kustomize "$work/$component" >"$work/with-$component.yaml"
  done
  if kubeconform=$(scripts/go-tool.sh github.com/yannh/kubeconform/cmd/kubeconform "$KUBECONFORM") && described; then
    # What cert-manager and External Secrets define is not in the API.
    "$kubeconform" -strict -skip Certificate,Issuer,ExternalSecret -schema-location "$schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json" "$work"/*.yaml
  else
    skipped "manifests are not compared with Kubernetes' API: kubeconform or the API's description cannot be had"
  fi
  if score=$(scripts/go-tool.sh github.com/zegl/kube-score/cmd/kube-score "$KUBE_SCORE"); then
    # A release's image does not change, pods are spread by topology, and a processor that nobody else wants is not refused.
    "$score" score --output-format ci --exit-one-on-warning --ignore-container-cpu-limit \
      --ignore-test container-image-pull-policy,deployment-has-host-podantiaffinity,statefulset-has-host-podantiaffinity \
      "$work"/*.yaml >"$work/score" || { grep -E '^\[(CRITICAL|WARNING)\]' "$work/score" >&2; exit 1; }
  else
    skipped "manifests are not scored: kube-score cannot be had"
  fi
else
  skipped "no overlay is rendered: kubectl cannot be had"
fi
if actionlint=$(scripts/go-tool.sh github.com/rhysd/actionlint/cmd/actionlint "$ACTIONLINT"); then
  "$actionlint"
else
  skipped "workflows are not checked: actionlint cannot be had"
fi
