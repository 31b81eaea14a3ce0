#!/usr/bin/env bash
# The fleet in a Kubernetes of one node on this machine (scripts/cluster.sh). `check` says what it takes. `up` starts the cluster, packs
# the images, applies the overlay for development and shows the demo. `release NAME` packs what is built now as another release, and rolls
# it out while the present one serves; `back NAME` rolls an earlier one out again, as it was packed. `restore TIME` brings everything back
# to a moment since the first backup. `rotate` gives it new passwords, keys and credentials. `down` removes everything.
# PROFILE=debug takes what `make build` has built; READ_WITHIN=SECONDS is how long `rotate` waits until every pod has what comes next. Needs
# root.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
unset FLOTILLA_PROFILE FLOTILLA_HOME REGISTRY
readonly state="$PWD/.flotilla-k8s" profile=${PROFILE:-release}
readonly home="$state/fleet" releases="$state/releases" flotilla="target/$profile/flotilla"
readonly profile_file="${XDG_CONFIG_HOME:-$HOME/.config}/flotilla/profiles/k8s.json"
fail() { echo "k8s: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "needs root: a node has namespaces, cgroups and a network of its own. It takes two minutes and 4 GiB of disk; first, once, 20 minutes and 8 GiB for the programs of Kubernetes, and a release build"
services=()
for folder in services/*/; do services+=("$(basename "$folder")"); done

use_cluster() {
  local programs
  programs=$(scripts/kube-programs.sh --folder)
  export KUBECONFIG="$state/pki/admin.conf" KUBECACHEDIR="$state/kubectl" NO_PROXY="${NO_PROXY:+$NO_PROXY,}10.99.0.2" PATH="$programs:$PATH"
}
is_ours() { [ "$(cat /run/flotilla-k8s/owner 2>/dev/null)" = "$PWD" ] && [ -s "$state/pki/admin.conf" ] && (use_cluster && kubectl --request-timeout=3s get --raw /readyz) >/dev/null 2>&1; }
in_fleet() { kubectl --namespace flotilla "$@"; }
step() { echo "$1: $((SECONDS - since)) s"; since=$SECONDS; }

# What it takes, before anything is built.
check() {
  local programs needed=4 minutes=2 free owner
  programs=$(scripts/kube-programs.sh --folder)
  [ -x "$programs/kubelet" ] && [ -x "$programs/coredns" ] || { needed=12 minutes=22; }
  echo "The fleet in Kubernetes: some $minutes minutes after the build of the fleet, $needed GiB of disk, 3 GiB of memory."
  for folder in . "$(dirname "$programs")"; do
    mkdir -p "$folder"
    free=$(($(df --output=avail -k "$folder" | tail -n 1) / 1048576))
    [ "$free" -ge "$needed" ] || fail "$needed GiB of disk are needed, and $free are free in $folder"
  done
  owner=$(cat /run/flotilla-k8s/owner 2>/dev/null || echo "$PWD")
  [ "$owner" = "$PWD" ] || fail "the cluster of this machine belongs to $owner: make k8s-down there removes it"
  scripts/cluster.sh prerequisites
}

# A release is kept as it was packed: its images, its manifests, and its number in the order of packing.
pack() { # name
  local part="$releases/.part"
  [ ! -d "$releases/$1" ] || fail "there is a release $1 already: what is built now needs another name; scripts/k8s.sh back $1 rolls it out as it was packed"
  rm -rf "$part" && mkdir -p "$part"
  cp -a k8s "$part/manifests"
  "$flotilla" k8s render --release "$1" --out "$part/manifests" >/dev/null
  PROFILE=$profile RELEASE=$1 scripts/images.sh "$part/images" flotilla "${services[@]}"
  find "$releases" -mindepth 1 -maxdepth 1 -type d ! -name .part | wc -l >"$part/number"
  mv "$part" "$releases/$1"
  step "packed release $1"
}
# The newest release of which pods may run.
last() { cat "$releases/last" 2>/dev/null; }
is_half() { [ -d "$releases/$1" ] && [ ! -e "$releases/$1/rolled" ]; }

give_secrets() { "$flotilla" --home "$home" k8s secrets | kubectl apply --server-side --filename - >/dev/null; }

# Everybody gets what comes next beside what there is; then the jobs of the release make PostgreSQL and NATS refuse what was before.
rotate() {
  local release
  release=$(last)
  "$flotilla" --home "$home" secrets stage >/dev/null
  give_secrets
  # The node gives new files to pods within a minute and a half.
  sleep "${READ_WITHIN:-120}"
  step "staged new secrets"
  "$flotilla" --home "$home" secrets finish >/dev/null
  roll "$release"
}

# With the images and the secrets that a registry and a store give elsewhere.
roll() { # name
  local release=$1 back=()
  if [ -n "$(last)" ] && [ "$(cat "$releases/$1/number")" -lt "$(cat "$releases/$(last)/number")" ]; then
    back=(--back)
  else
    echo "$release" >"$releases/last"
  fi
  scripts/cluster.sh load "$releases/$release"/images/*.tar >/dev/null
  kubectl apply --server-side --filename k8s/base/namespace.yaml >/dev/null
  give_secrets
  # It ends with this process, however that ends.
  setpriv --pdeathsig KILL scripts/roll.sh "${back[@]}" "$releases/$release/manifests/overlays/dev" "$release"
  mkdir -p "$home/tls"
  in_fleet get secret jobs-tls --output 'jsonpath={.data.ca\.crt}' | base64 --decode >"$home/tls/ca.crt.part"
  mv "$home/tls/ca.crt.part" "$home/tls/ca.crt"
  touch "$releases/$release/rolled"
  [ ${#back[@]} = 0 ] || echo "$release" >"$releases/last"
  step "rolled out release $release"
}

gone() { # selector
  local pods
  pods=$(in_fleet get pods --selector "$1" --output name)
  # shellcheck disable=SC2086 # several words
  [ -z "$pods" ] || in_fleet wait --for=delete $pods --timeout=120s >/dev/null
}

# Files that a command leaves where it runs.
in_state() { (cd "$state" && "$@"); }

# What is said of a restore that was cut off; its job has ended before PostgreSQL may start.
restoring="" restored=""
cut_off() {
  local backup="kubectl --namespace flotilla create job full --from=cronjob/backup-postgres-full"
  # It may have ended since it was looked at.
  [ "$restored" = followed ] || restored=$(until_ended "$restoring" 0)
  case $restored in
    followed) echo "k8s: the fleet is back, and the full backup that it needs now is not made: $backup" >&2 ;;
    *Complete*) echo "k8s: PostgreSQL is back at its moment. What is left to do: scripts/k8s.sh back $(last); flotilla --profile k8s restore follow --reason WHY; $backup" >&2 ;;
    *)
      ended_for_good || true
      echo "k8s: services, or PostgreSQL, are stopped: scripts/k8s.sh back $(last) starts all. If PostgreSQL's volume has a folder before-$restoring-*, it went back: then also flotilla --profile k8s restore follow --reason WHY; $backup" >&2 ;;
  esac
}
# Until a job has ended, or so many seconds have passed; prints how. The API may be away for a moment.
until_ended() { # job, seconds
  local how="" seconds=0
  until [[ $how =~ Complete|Failed ]] || [ "$seconds" -gt "$2" ]; do
    how=$(in_fleet get job "$1" --ignore-not-found --output 'jsonpath=is {.status.conditions[?(@.status=="True")].type}') && [ -z "$how" ] && how=Failed
    seconds=$((seconds + 1))
    sleep 1
  done
  echo "$how"
}
ended_for_good() {
  in_fleet delete job "$restoring" --ignore-not-found --cascade=foreground --timeout=120s >/dev/null
  gone "batch.kubernetes.io/job-name=$restoring"
}

# PostgreSQL back to a moment, while nobody writes; then streams and index to the same time.
restore() { # time
  local release to at
  restoring="restore-$(date +%s)"
  release=$(last)
  [[ $1 =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z$ ]] || fail "say a time as 2026-11-28T03:00:00Z"
  # A moment that was undone is on no path from here.
  while read -r to at; do
    [[ ! ($to < $1 && $1 < $at) ]] || fail "$1 was undone by the restore of $at, which went back to $to"
  done < <(cat "$state/restores" 2>/dev/null)
  in_fleet create configmap restore --from-literal=to="$(sed 's/T/ /; s/Z$/+00/' <<<"$1")" --dry-run=client --output yaml | kubectl apply --server-side --filename - >/dev/null
  trap cut_off EXIT
  in_fleet scale deployment --all --replicas=0 >/dev/null
  gone "app.kubernetes.io/name in ($(IFS=,; echo "${services[*]}"))"
  # It archives the last of its log as it stops.
  in_fleet scale statefulset/postgres --replicas=0 >/dev/null
  gone app.kubernetes.io/name=postgres
  # Noted first: one that is cut off may have been done.
  cp "$state/restores" "$state/restores.before" 2>/dev/null || : >"$state/restores.before"
  echo "$1 $(date -u +%Y-%m-%dT%H:%M:%SZ)" >>"$state/restores"
  in_fleet create job "$restoring" --from=cronjob/restore-postgres >/dev/null
  restored=$(until_ended "$restoring" 3300)
  if [[ $restored != *Complete* ]]; then
    in_fleet logs "job/$restoring" --tail 5 >&2 || true
    [[ $restored != *Failed* ]] || mv "$state/restores.before" "$state/restores"
    ended_for_good
  fi
  in_fleet scale statefulset/postgres --replicas=1 >/dev/null
  # Also the passwords of the roles are those of that moment.
  roll "$release"
  [[ $restored == *Complete* ]] || { trap - EXIT; fail "nothing was restored: the fleet is as it was"; }
  FLOTILLA_OPERATOR_TOKEN=$("$flotilla" --home "$home" token --operator --user "${USER:-operator}") \
    in_state "$PWD/$flotilla" --profile k8s restore follow --reason "back to $1" --yes
  # From what was undone nothing is restored any more.
  restored=followed
  in_fleet create job "$restoring-backup" --from=cronjob/backup-postgres-full >/dev/null
  [[ $(until_ended "$restoring-backup" 3000) == *Complete* ]] || exit 1
  trap - EXIT
}

address() { in_fleet get service "$1" --output "jsonpath={.spec.clusterIP}:$2"; } # service, port

up() {
  local started=$SECONDS release service ops=()
  [ -x "$flotilla" ] || fail "$flotilla is not built: make k8s builds it"
  [ ! -e "$profile_file" ] || grep -qF "\"$home\"" "$profile_file" || fail "there is a profile k8s of another fleet: flotilla profile remove k8s"
  is_ours || scripts/cluster.sh up >/dev/null
  use_cluster
  step "the cluster"
  if [ ! -e "$state/images/redis.tar" ]; then
    PROFILE=$profile RELEASE=dev scripts/images.sh "$state/images" flotilla nats-server postgres opensearch redis
    step "packed the images of PostgreSQL, NATS, OpenSearch and Redis"
  fi
  scripts/cluster.sh load "$state"/images/{flotilla,nats-server,postgres,opensearch,redis}.tar >/dev/null
  release=$(last || true)
  if [ -n "$release" ]; then
    echo "Release $release is rolled out as it was packed; for what is built now: scripts/k8s.sh release NAME"
  else
    release=$("$flotilla" --version | cut -d' ' -f2)
    [ -d "$releases/$release" ] || pack "$release"
  fi
  roll "$release"
  for service in "${services[@]}"; do ops+=(--ops "$service=https://$(address "$service-ops" 9090)"); done
  "$flotilla" profile add k8s --gateway "https://$(address gateway 8080)" --nats "tls://$(address nats 4222)" \
    --jwks "file://$home/secrets/jwks.json" --keys "$home" "${ops[@]}" >/dev/null
  "$flotilla" --profile k8s demo
  echo "
The fleet is up in Kubernetes after $((SECONDS - started)) s. Try next
  $flotilla --profile k8s status
  export KUBECONFIG=$KUBECONFIG KUBECACHEDIR=$KUBECACHEDIR NO_PROXY='$NO_PROXY' PATH=$(scripts/kube-programs.sh --folder):\$PATH
  kubectl --namespace flotilla get pods"
}

# One at a time. The lock is the clone itself, which no command here removes; what a killed one had started may hold it a moment longer.
exec 9<"$PWD"
flock --timeout 10 9 || fail "another scripts/k8s.sh is at work here: wait until it has ended"
since=$SECONDS
case "${1:-} $#" in
  "check 1") check ;;
  "up 1") up ;;
  "release 2" | "back 2")
    is_ours || fail "no cluster of this clone is up: make k8s starts one"
    use_cluster
    if [ "$1" = release ]; then
      is_half "$2" || pack "$2"
    else
      [ -n "$2" ] && [ -e "$releases/$2/rolled" ] || fail "release $2 was never rolled out; there are: $(cd "$releases" && ls --directory -- */)"
    fi
    roll "$2"
    ;;
  "restore 2")
    is_ours || fail "no cluster of this clone is up: make k8s starts one"
    use_cluster
    restore "$2"
    ;;
  "rotate 1")
    is_ours || fail "no cluster of this clone is up: make k8s starts one"
    use_cluster
    rotate
    ;;
  "down 1")
    scripts/cluster.sh down
    ! grep -qsF "\"$home\"" "$profile_file" || rm "$profile_file"
    ;;
  *) fail "say check, up, release NAME, back NAME, restore TIME, rotate or down" ;;
esac
