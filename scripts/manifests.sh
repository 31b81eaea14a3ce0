#!/usr/bin/env bash
# Checks what no cluster is needed for: every overlay renders, its objects are what the API of Kubernetes takes, no field misspelt
# (kubeconform, with schemas made of that API's own description and of what operators define), and what operators expect of them
# (kube-score); workflows (actionlint).
# What checks is built once into the user's cache. Where it cannot be had, it says so and does not check that.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/versions.env
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
cache="$cache/flotilla"
kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' infra/kube/kube/go.mod)
schemas="$cache/kubernetes-schemas" recipe=$(sha256sum <infra/kube/schemas.py | cut -c1-12)
# What components of k8s/ have of others: the module, its version, where it has its definitions, and the kinds that we use.
others=(
  "github.com/cert-manager/cert-manager $CERT_MANAGER deploy/crds/cert-manager.io_ certificates,issuers Certificate,Issuer"
  "github.com/external-secrets/external-secrets $EXTERNAL_SECRETS config/crds/bases/external-secrets.io_ externalsecrets,secretstores ExternalSecret,SecretStore"
  "github.com/prometheus-operator/prometheus-operator $PROMETHEUS_OPERATOR example/prometheus-operator-crd/monitoring.coreos.com_ podmonitors,prometheusrules PodMonitor,PrometheusRule"
  "sigs.k8s.io/gateway-api $GATEWAY_API config/crd/standard/gateway.networking.k8s.io_ httproutes,backendtlspolicies HTTPRoute,BackendTLSPolicy"
)

skipped() { echo "SKIPPED: $1" >&2; }
# The folder of a module; what it needs to be built is not fetched.
module() { (cd / && GOTOOLCHAIN=local GOFLAGS='' go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p' | grep .); }
# Writes the schemas of these sources into a folder of the cache, which is then there as a whole, also where two do so at once.
written() { # folder, source...
  local part
  mkdir -p "$schemas"
  part=$(mktemp -d "$1.XXXXXX")
  python3 infra/kube/schemas.py "$part" "${@:2}" || { rm -rf "$part"; echo "manifests: infra/kube/schemas.py failed" >&2; exit 3; }
  mv -T "$part" "$1" 2>/dev/null || rm -rf "$part"
}
# What a command prints, into a variable; false where it cannot be had. 3 is a failure of ours.
had() { # variable, command...
  local printed code=0
  printed=$("${@:2}") || code=$?
  [ "$code" != 3 ] || exit 1
  printf -v "$1" %s "$printed"
  return "$code"
}
of_api() {
  local folder="$schemas/$kubernetes-$recipe" source
  [ -d "$folder" ] || { source=$(module "k8s.io/kubernetes@$kubernetes") && written "$folder" "$source/api/openapi-spec/swagger.json"; } || return 1
  echo "$folder"
}
of_another() { # module, version, where, names
  local folder source name sources=()
  folder="$schemas/$(basename "$1")-$2-$(sha256sum <<<"$4" | cut -c1-6)-$recipe"
  [ -d "$folder" ] || {
    source=$(module "$1@v$2") || return 1
    # For the metadata, which the others leave to the API.
    sources=("$(module "k8s.io/kubernetes@$kubernetes")/api/openapi-spec/swagger.json") || return 1
    for name in ${4//,/ }; do
      # Into JSON, without a cluster.
      "$kubectl" label --local --filename "$source/$3$name.yaml" read=here --output json >"$work/$name.json" || exit 3
      sources+=("$work/$name.json")
    done
    written "$folder" "${sources[@]}"
  }
  echo "$folder"
}

# The files that define what we use of others: `manifests.sh definitions` prints them, for a cluster that has to know it.
if [ "${1:-}" = definitions ]; then
  for other in "${others[@]}"; do
    read -r path version where names _ <<<"$other"
    source=$(module "$path@v$version") || { echo "manifests: $path $version cannot be had" >&2; exit 1; }
    for name in ${names//,/ }; do echo "$source/$where$name.yaml"; done
  done
  exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if kubectl=$(scripts/kubectl.sh); then
  for overlay in k8s/overlays/*/; do "$kubectl" kustomize "$overlay" >"$work/$(basename "$overlay").yaml"; done
  # An overlay names its registry, its addresses and its host in one place each; the components that it takes leave them open.
  open='REGISTRY/|cidr: PLACE|^ *- HOST$'
  [ "$(cat k8s/base/*.yaml k8s/components/hosted/*.yaml | sed 's/\[HOST\]/\n- HOST/' | grep -oE "$open" | sort -u | wc -l)" = 3 ] \
    || { echo "manifests: nothing is open any more: look for something else" >&2; exit 1; }
  ! grep -nE "$open" "$work"/*.yaml || { echo "manifests: an overlay leaves these open" >&2; exit 1; }
  if kubeconform=$(scripts/go-tool.sh github.com/yannh/kubeconform/cmd/kubeconform "$KUBECONFORM") && had api of_api; then
    locations=(-schema-location "$api/{{ .ResourceKind }}{{ .KindSuffix }}.json") unknown=()
    for other in "${others[@]}"; do
      read -r path version where names kinds <<<"$other"
      if had folder of_another "$path" "$version" "$where" "$names"; then
        locations+=(-schema-location "$folder/{{ .ResourceKind }}{{ .KindSuffix }}.json")
      else
        skipped "$kinds are not compared with their definitions: $path cannot be had"
        unknown+=("$kinds")
      fi
    done
    # One that must be refused: else what follows would check nothing.
    printf '%s\n' 'apiVersion: v1' 'kind: ConfigMap' 'metadata: {name: planted, lables: {}}' >"$work/planted"
    { "$kubeconform" -strict "${locations[@]}" - <"$work/planted" || true; } 2>&1 | grep -q lables \
      || { echo "manifests: a misspelt field is not refused" >&2; exit 1; }
    "$kubeconform" -strict -skip "$(IFS=,; echo "${unknown[*]}")" "${locations[@]}" "$work"/*.yaml
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
