#!/usr/bin/env bash
# Rolls a release out on the cluster of the present kubeconfig while the one before serves: `roll.sh OVERLAY RELEASE`, a folder of
# k8s/overlays, rendered for that release. In the order of docs/deploying.md: jobs, then those who read events, those who publish, and
# the edge. `roll.sh --back OVERLAY RELEASE` goes to an earlier release, in the other order. It waits for each step, and stops at one that
# does not end well; run again, it goes on.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
fail() { echo "roll: $*" >&2; exit 1; }
waves=(operations consumers producers edge watch)
if [ "${1:-}" = --back ]; then
  waves=(watch edge producers consumers operations)
  shift
fi
[ $# = 2 ] && [ -f "$1/kustomization.yaml" ] || fail "say the folder of an overlay, and the release"
overlay=$1 of="flotilla/release=$2"
if ! command -v kubectl >/dev/null; then
  program=$(scripts/kubectl.sh)
  PATH="${program%/*}:$PATH"
fi
in_fleet() { kubectl --namespace flotilla "$@"; }

# Until a job has ended, well or not: a migration takes its time, while its pod runs. All together it may be four minutes without one.
ended() { # job
  local said idle=0
  while [ "$idle" -lt 240 ]; do
    # The API may be away for a moment.
    said=$(in_fleet get "$1" --ignore-not-found --output 'jsonpath=is {.status.conditions[?(@.status=="True")].type} {.status.ready}') || said="is"
    case $said in
      *Complete*) return 0 ;;
      "" | *Failed*) return 1 ;;
      *[1-9]) ;;
      *) idle=$((idle + 1)) ;;
    esac
    sleep 1
  done
  return 1
}

settled() { # kind, selector...
  local all one
  all=$(in_fleet get "$@" --output name)
  # Elsewhere than in development there is no StatefulSet.
  [ -n "$all" ] || [ "$1" = statefulset ] || fail "there is nothing of: $*"
  for one in $all; do
    case $one in
      job*) ended "$one" || { in_fleet logs "$one" --tail 5 >&2 || true; fail "$one has not ended well"; } ;;
      *) in_fleet rollout status "$one" --timeout=240s >/dev/null || fail "$one does not get its pods ready: kubectl --namespace flotilla describe $one, and its pods" ;;
    esac
  done
}

# Once: what is applied is what was looked at. The namespace comes first in it.
rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT
kubectl kustomize "$overlay" >"$rendered"
grep -qE "^    flotilla/release: \"?${2//./\\.}\"?\$" "$rendered" || fail "$overlay was rendered for another release than $2: flotilla k8s render --release $2"
# An older release, whose readers come before its writers, would meet events that it does not know.
if [ "${waves[0]}" != watch ]; then
  images=$(in_fleet get deployment --selector flotilla/wave --output 'jsonpath={range .items[*]}{.spec.template.spec.containers[0].image}{"\n"}{end}')
  # Where both are versions; a candidate (1.3.0-rc.1) comes before what it becomes.
  version='^[0-9]+\.[0-9]+\.[0-9]+(-|$)'
  for running in $(sed 's/.*://' <<<"$images" | grep -E "$version" | sort -u); do
    [[ $2 =~ $version ]] || break
    [ "$(printf '%s\n' "$running" "$2" | tr - '~' | sort -V | tail -n 1 | tr '~' -)" = "$2" ] || fail "$running runs, which is newer than $2: say --back"
  done
fi
kubectl apply --server-side --force-conflicts --filename "$rendered" --selector '!flotilla/wave' >/dev/null
# One that has ended, or whose settings are others now, is not begun again by being applied; each may run again. One that still runs, since
# an earlier call of this was cut off, ends first: a migration that is killed begins anew.
for job in $(in_fleet get job --selector "$of" --output 'jsonpath={range .items[*]}job/{.metadata.name}={.status.ready} {end}'); do
  case $job in *=[1-9]*) ended "${job%=*}" || true ;; esac
done
in_fleet delete job --selector "$of" >/dev/null
kubectl apply --server-side --filename "$rendered" --selector flotilla/wave=jobs >/dev/null
settled job --selector "$of"
settled statefulset
for wave in "${waves[@]}"; do
  # An earlier release may not have all of them.
  grep -q "^    flotilla/wave: $wave\$" "$rendered" || continue
  # Also over a number of pods that somebody has set.
  kubectl apply --server-side --force-conflicts --filename "$rendered" --selector "flotilla/wave=$wave" >/dev/null
  settled deployment --selector "flotilla/wave=$wave"
done
