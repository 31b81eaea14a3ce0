#!/usr/bin/env bash
# A Kubernetes of one node on this machine, in namespaces of its own: processes, mounts, network. Ending its first process ends all of
# it. `up` starts it and waits until the node is ready; `load` puts images into it; `down` removes it with everything in it; `state`
# prints what of this machine a cluster could touch, to compare before and after. `prerequisites` installs what it needs, as `up`
# does. One at a time on a machine. Needs root.
set -euo pipefail
export LC_ALL=C PATH="/usr/local/sbin:/usr/sbin:/sbin:$PATH"
self=$(realpath "$0")
verb=${1:-}
archives=()
if [ "$verb" = load ] && [ $# -gt 1 ]; then mapfile -t archives < <(realpath -m -- "${@:2}"); fi
cd "$(dirname "$self")/.."
# What belongs to the machine is known to every clone; the rest is this clone's.
readonly machine=/run/flotilla-k8s state="$PWD/.flotilla-k8s"
readonly host=10.99.0.1 node=10.99.0.2 nodes=10.99.0.0/24 services=10.96.0.0/16 pods=10.244.0.0/24
readonly link=flotilla-k8s host_link=flotilla-k8s-h group=flotilla-k8s
# What the kubelet sets on a whole machine: it gets files of its own in their place.
readonly settings=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes)
# Where the parts write besides: they see these folders under a layer of their own.
readonly layered=(/etc /opt /usr/libexec /var/lib /var/log)

fail() { echo "cluster: $*" >&2; exit 1; }
# When a process began: with it, a number that was given again is told from the one that was meant.
# One that has ended, and that nobody waited for, has no beginning.
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }
is_up() { [ -s "$machine/node" ] && { read -r pid start; } <"$machine/node" && [ "$(began "$pid")" = "$start" ]; }
# The roots of the machine's cgroups: one for each controller of version 1, and the one of version 2.
cgroups() { findmnt --noheadings --raw --types cgroup,cgroup2 --output TARGET; }

machine_state() {
  local setting folder
  for setting in "${settings[@]}"; do echo "setting $setting $(cat "/proc/sys/$setting")"; done
  ip -brief link | awk '{ print "link", $1 }'
  ip -4 route | sed 's/^/route /'
  awk '{ print "mount", $5 }' /proc/self/mountinfo | sort
  sed 's/^/apparmor /' /sys/kernel/security/apparmor/profiles 2>/dev/null || true
  for folder in $(cgroups); do find "$folder/$group" -type d 2>/dev/null | sed 's/^/cgroup /' || true; done
  { iptables-save; iptables-legacy-save; } 2>/dev/null | grep -v '^[#:]' | sed 's/^/iptables /' || true
  find /var/lib/{cni,kubelet,containers,containerd} /var/log/{containers,pods} /usr/libexec/kubernetes /opt/{cni,containerd} /etc/{cni,kubernetes} \
    /run/{nri,netns,containerd,flotilla-k8s} "$HOME/.kube" "$state" -maxdepth 3 2>/dev/null | sort | sed 's/^/file /' || true
  find /proc -maxdepth 3 -path '/proc/[0-9]*/ns/pid' -printf '%l\n' 2>/dev/null | grep -vxF -e "" -e "$(readlink /proc/self/ns/pid)" | sort -u | sed 's/^/process in /' || true
}

certificate() { # name, common name, organization, alternative names
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/O=$3/CN=$2"
  printf 'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=%s\n' "${4:-DNS:none}" >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile "$1.ext"
}

# The cluster's own authority, a certificate for each of its parts, and a kubeconfig for each client.
keys() (
  umask 077
  mkdir "$state/pki"
  cd "$state/pki"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=flotilla-k8s
  certificate apiserver kube-apiserver k8s "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$node"
  certificate admin admin system:masters
  certificate controllers system:kube-controller-manager system:kube-controller-manager
  certificate scheduler system:kube-scheduler system:kube-scheduler
  certificate kubelet system:node:node1 system:nodes "DNS:node1,IP:$node,IP:127.0.0.1"
  certificate proxy system:kube-proxy system:node-proxier
  certificate dns dns flotilla-dns
  certificate front front-proxy front
  openssl genrsa -out sa.key 2048
  openssl rsa -in sa.key -pubout -out sa.pub
  for name in admin controllers scheduler kubelet proxy dns; do
    cat >"$name.conf" <<EOF
apiVersion: v1
kind: Config
clusters: [{name: flotilla, cluster: {server: "https://$node:16443", certificate-authority: "$PWD/ca.crt"}}]
users: [{name: $name, user: {client-certificate: "$PWD/$name.crt", client-key: "$PWD/$name.key"}}]
contexts: [{name: flotilla, context: {cluster: flotilla, user: $name}}]
current-context: flotilla
EOF
  done
)

until_so() { # what, log, command...
  local what=$1 log=$2 deadline=$((SECONDS + 120))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ! is_up; then
      cat "$state/logs/node.log" >&2 || true
      fail "the node has ended: $state/logs has what its parts said"
    elif [ $SECONDS -gt $deadline ]; then
      tail -n 5 "$state/logs/$log.log" >&2 || true
      fail "$what is not ready after 120 s: see $state/logs/$log.log"
    fi
    sleep 0.1
  done
}

# Covers the machine's folders and settings, so that what the parts write there goes with the node.
cover() { # programs
  local folder setting kept
  mount --make-rshared /
  mount -t proc proc /proc
  mount -t tmpfs tmpfs /run
  mkdir /run/flotilla-k8s /run/kept-0 /run/kept-1
  mount --bind "$state" /run/kept-0
  mount --bind "$1" /run/kept-1
  for folder in "${layered[@]}"; do
    [ -d "$folder" ] || continue
    kept="/run/layers$folder"
    mkdir -p "$kept/upper" "$kept/work"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=$kept/upper,workdir=$kept/work" "$folder"
  done
  mount --bind /run/kept-0 "$state"
  mount --bind /run/kept-1 "$1"
  # The node's volumes, where manifests find them whatever the clone's path is.
  mkdir /run/flotilla-k8s/volumes
  mount --bind "$state/volumes" /run/flotilla-k8s/volumes
  for setting in "${settings[@]}"; do
    [ -e "/proc/sys/$setting" ] || continue
    kept="/run/settings/$setting"
    mkdir -p "$(dirname "$kept")"
    cat "/proc/sys/$setting" >"$kept"
    mount --bind "$kept" "/proc/sys/$setting"
  done
}

# The first process of the namespaces: starts each part, and takes in what they leave behind.
inside() { # programs
  local programs=$1 pid tries=0
  # Of the machine's own numbers, which end with the next mount.
  read -r pid _ </proc/self/stat
  echo "$pid $(began "$pid")" >"$machine/node"
  cover "$programs"
  # A part that ends is started again: the kubelet, for one, ends when containerd is not there yet.
  start() { local name=$1; shift; while :; do "$@" || true; sleep 0.2; done >"$state/logs/$name.log" 2>&1 </dev/null & }
  until ip link show "$link" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -le 200 ] || fail "nobody gave the node a network"
    sleep 0.05
  done
  ip link set lo up
  ip addr add "$node/24" dev "$link"
  ip link set "$link" up
  ip route add default via "$host"
  sysctl -qw net.ipv4.ip_forward=1
  unset HTTP_PROXY HTTPS_PROXY http_proxy https_proxy ALL_PROXY all_proxy
  export PATH="$programs:$PATH"
  start etcd etcd --data-dir "$state/etcd" --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379 \
    --listen-peer-urls http://127.0.0.1:12380 --unsafe-no-fsync --log-level warn
  start apiserver kube-apiserver --etcd-servers http://127.0.0.1:12379 --secure-port 16443 --bind-address 0.0.0.0 --advertise-address "$node" \
    --service-cluster-ip-range $services --client-ca-file "$state/pki/ca.crt" --tls-cert-file "$state/pki/apiserver.crt" \
    --tls-private-key-file "$state/pki/apiserver.key" --service-account-key-file "$state/pki/sa.pub" \
    --service-account-signing-key-file "$state/pki/sa.key" --service-account-issuer https://kubernetes.default.svc \
    --kubelet-client-certificate "$state/pki/admin.crt" --kubelet-client-key "$state/pki/admin.key" --authorization-mode Node,RBAC \
    --enable-admission-plugins NodeRestriction --proxy-client-cert-file "$state/pki/front.crt" --proxy-client-key-file "$state/pki/front.key" \
    --requestheader-client-ca-file "$state/pki/ca.crt" --requestheader-allowed-names front-proxy \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
    --requestheader-extra-headers-prefix X-Remote-Extra- --kubelet-preferred-address-types InternalIP
  start containerd containerd -c "$state/containerd.toml"
  start controllers kube-controller-manager --kubeconfig "$state/pki/controllers.conf" --service-account-private-key-file "$state/pki/sa.key" \
    --root-ca-file "$state/pki/ca.crt" --cluster-signing-cert-file "$state/pki/ca.crt" --cluster-signing-key-file "$state/pki/ca.key" \
    --use-service-account-credentials --leader-elect=false --bind-address 127.0.0.1
  start scheduler kube-scheduler --kubeconfig "$state/pki/scheduler.conf" --leader-elect=false --bind-address 127.0.0.1
  start kubelet kubelet --config "$state/kubelet.yaml" --kubeconfig "$state/pki/kubelet.conf" --root-dir "$state/kubelet" \
    --hostname-override node1 --node-ip "$node"
  start proxy kube-proxy --config "$state/proxy.yaml" --hostname-override node1
  start dns coredns -conf "$state/Corefile"
  while :; do wait -n || true; done
}

# Names everything that is missing, and installs it where this user may.
prerequisites() {
  local package said missing=()
  findmnt --noheadings --types cgroup >/dev/null || fail "this machine has cgroups of version 2 alone, on which it was not tried"
  [[ $PWD =~ ^[A-Za-z0-9/._-]+$ ]] || fail "the clone's path may have letters, digits, and / . _ - alone: $PWD"
  for package in runc containernetworking-plugins iptables buildah iproute2 openssl gcc libc6-dev procps curl python3-venv pgbackrest age; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q ' installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  [ -z "${FLOTILLA_NO_INSTALL:-}" ] || fail "missing: apt-get install ${missing[*]}"
  echo "installing what is missing: ${missing[*]}" >&2
  said=$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } 2>&1 </dev/null) \
    || { tail -n 5 <<<"$said" >&2; fail "apt-get install ${missing[*]} failed"; }
}

# In nsenter's words, what runs among the node's mounts and processes.
in_node() { read -r pid _ <"$machine/node"; nsenter --target "$pid" --mount --pid -- "$@"; }

load() {
  local archive ctr
  [ $# -gt 0 ] || fail "say which archives to load"
  is_up || fail "no cluster is up: make cluster starts one"
  [ "$(cat "$machine/owner")" = "$PWD" ] || fail "the cluster that is up belongs to $(cat "$machine/owner"): load there"
  ctr="$(scripts/kube-programs.sh --folder)/ctr"
  for archive in "$@"; do
    [ -r "$archive" ] || fail "$archive is not there: make images makes it"
    in_node "$ctr" --address /run/flotilla-k8s/containerd.sock --namespace k8s.io images import --local - <"$archive" 2>"$state/logs/images.log" \
      || { tail -n 3 "$state/logs/images.log" >&2; fail "$archive cannot be loaded: is it an archive of scripts/images.sh?"; }
  done
}

up() {
  local programs started=$SECONDS file folder taken
  prerequisites
  programs=$(scripts/kube-programs.sh)
  lock
  ! is_up || fail "a cluster is up already, of $(cat "$machine/owner"): make cluster-down there removes it"
  down
  for file in "$nodes" "$services" "$pods"; do
    taken=$({ ip -4 route show root "$file"; ip -4 -oneline address show to "$file"; } 2>/dev/null || true)
    [ -z "$taken" ] || fail "this machine uses addresses of $file already: $(head -n 1 <<<"$taken")"
  done
  # Whatever fails from here on, the node ends; its logs stay until the next `up` or `down`.
  trap stop EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  mkdir -p "$machine" "$state/logs/pods" "$state/cni" "$state/volumes/"{1..8}
  chmod 700 "$state"
  echo "$PWD" >"$machine/owner"
  keys >"$state/logs/keys.log" 2>&1 || { tail -n 5 "$state/logs/keys.log" >&2; fail "the cluster's keys could not be made: see $state/logs/keys.log"; }
  for file in Corefile containerd.toml kubelet.yaml proxy.yaml; do sed "s|@STATE@|$state|g" "infra/kube/$file" >"$state/$file"; done
  sed "s|@STATE@|$state|g" infra/kube/pods.conflist >"$state/cni/10-pods.conflist"
  : >"$state/resolv.conf"
  for folder in $(cgroups); do
    mkdir -p "$folder/$group"
    # A new cpuset of version 1 has neither processors nor memory.
    for file in cpuset.cpus cpuset.mems; do
      [ ! -e "$folder/$file" ] || cat "$folder/$file" >"$folder/$group/$file"
    done
  done
  # It sees what the machine unmounts, and the machine nothing of it. Without the lock, which is this command's.
  setsid unshare --propagation slave --fork --pid --mount --net --ipc --uts --kill-child "$self" inside "$programs" >"$state/logs/node.log" 2>&1 </dev/null 9>&- &
  outside=$!
  outside_began=$(began "$outside") || true
  until is_up; do kill -0 "$outside" 2>/dev/null || { cat "$state/logs/node.log" >&2; fail "this machine gives us no namespaces"; }; sleep 0.05; done
  ip link add "$host_link" type veth peer name "$link" netns "$pid" || fail "this machine gives the node no network (ip link add ... type veth)"
  ip addr add "$host/24" dev "$host_link"
  ip link set "$host_link" up
  # Services and pods have addresses that this machine reaches; the routes go with the link.
  ip route add "$services" via "$node" dev "$host_link"
  ip route add "$pods" via "$node" dev "$host_link"
  export KUBECONFIG="$state/pki/admin.conf" KUBECACHEDIR="$state/kubectl" NO_PROXY="${NO_PROXY:+$NO_PROXY,}$node"
  until_so "the API server" apiserver "$programs/kubectl" --request-timeout=2s get --raw /readyz
  until_so "containerd" containerd in_node "$programs/ctr" --address /run/flotilla-k8s/containerd.sock version
  # The first process of each pod.
  REGISTRY=localhost/flotilla RELEASE=1 scripts/images.sh "$state/images" pause
  load "$state/images/pause.tar" >/dev/null
  until_so "the node" kubelet "$programs/kubectl" --request-timeout=2s wait --for=condition=Ready node/node1 --timeout=1s
  # What CoreDNS may read: services and where they lead.
  "$programs/kubectl" apply --server-side --filename infra/kube/dns.yaml >/dev/null
  { cat infra/kube/storage.yaml; for file in {1..8}; do echo ---; sed "s|@NUMBER@|$file|" infra/kube/volume.yaml; done; } \
    | "$programs/kubectl" apply --server-side --filename - >/dev/null
  until_so "the DNS" dns nsenter --target "$pid" --net curl --silent --fail http://127.0.0.1:10254/ready
  until_so "kube-proxy" proxy nsenter --target "$pid" --mount --net iptables --wait -t nat -n -L KUBE-SERVICES
  until_so "the controllers" controllers "$programs/kubectl" --request-timeout=2s get serviceaccount default
  trap - EXIT INT TERM HUP
  echo "the cluster is up after $((SECONDS - started)) s: export KUBECONFIG=$KUBECONFIG KUBECACHEDIR=$KUBECACHEDIR NO_PROXY='$NO_PROXY' PATH=$programs:\$PATH"
}

# Ends the node, and takes away what a namespace does not hold.
stop() {
  local folder file deadline=$((SECONDS + 30))
  trap '' INT TERM HUP
  # On its way to be the node, or the node.
  [ -z "${outside_began:-}" ] || [ "$(began "$outside")" != "$outside_began" ] || kill -KILL "$outside" 2>/dev/null || true
  if is_up; then
    # What is frozen does not die.
    for folder in $(cgroups); do
      find "$folder/$group" -name freezer.state 2>/dev/null | while read -r file; do echo THAWED >"$file" || true; done
    done
    kill -KILL "$pid" 2>/dev/null || true
    while is_up; do
      [ $SECONDS -lt $deadline ] || fail "the node (process $pid) does not end: look at its threads in /proc/$pid/task"
      sleep 0.05
    done
  fi
  ip link delete "$host_link" 2>/dev/null || true
  for folder in $(cgroups); do
    [ -d "$folder/$group" ] || continue
    until find "$folder/$group" -depth -type d -exec rmdir {} + 2>/dev/null; do
      [ $SECONDS -lt $deadline ] || fail "$folder/$group still has processes: $(find "$folder/$group" -name cgroup.procs -exec cat {} + | tr '\n' ' ')"
      sleep 0.05
    done
  done
  rm -rf "$machine"
}

# Of this clone's cluster, or of one whose clone has gone.
down() {
  local owner
  owner=$(cat "$machine/owner" 2>/dev/null || echo "$PWD")
  [ "$owner" = "$PWD" ] || [ ! -d "$owner" ] || ! is_up || fail "the cluster that is up belongs to $owner: make cluster-down there removes it"
  stop
  trap - INT TERM HUP
  rm -rf "$state"
}

# `up` and `down` take turns on a machine; the lock is a folder that is there anyway. What a killed `up` had started may hold it a moment longer.
lock() {
  exec 9</run
  flock --timeout 10 9 || fail "another process is at work on the machine's cluster: wait until it has ended"
}

[ "$(id -u)" = 0 ] || fail "a node needs root: namespaces, cgroups and a network of its own"
case $verb in
  up) up ;;
  down) lock; down ;;
  inside) [ $$ = 1 ] || fail "only up starts this, in namespaces of its own"; inside "$2" ;;
  load) load "${archives[@]}" ;;
  prerequisites) prerequisites ;;
  state) machine_state ;;
  *) fail "say up, down, load ARCHIVE..., prerequisites or state" ;;
esac
