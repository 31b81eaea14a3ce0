//! Who reaches whom: the connections that the pods of a running fleet really have, compared with its network policies, which this
//! cluster does not enforce.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, park_timeout, spawn};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fleet::in_fleet;

/// How often the connections are looked at, and the pods.
const LOOKS: Duration = Duration::from_millis(250);
const ASKS: Duration = Duration::from_secs(2);
/// States of /proc/net/tcp: connected, over but remembered for a minute, and a server's.
const CONNECTED: &str = "01";
const OVER: &str = "06";
const LISTENS: &str = "0A";

/// One end of a connection.
type End = (Ipv4Addr, u16);

/// A pod, as far as policies name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pod {
    labels: BTreeMap<String, String>,
    ports: BTreeMap<String, u16>,
}

impl Pod {
    fn of(manifest: &Value) -> Self {
        let labels = manifest["metadata"]["labels"].as_object().into_iter().flatten();
        let containers = manifest["spec"]["containers"].as_array().into_iter().flatten();
        let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
        let port = |port: &Value| {
            (port["name"].as_str().unwrap().to_owned(), u16::try_from(port["containerPort"].as_u64().unwrap()).unwrap())
        };
        Self {
            labels: labels.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect(),
            ports: ports.map(port).collect(),
        }
    }

    fn workload(&self) -> &str {
        &self.labels["app.kubernetes.io/name"]
    }

    fn is_selected(&self, selector: &Value) -> bool {
        let wanted = selector["matchLabels"].as_object().into_iter().flatten();
        assert!(selector["matchExpressions"].is_null(), "this test does not know expressions: {selector}");
        wanted.into_iter().all(|(key, value)| self.labels.get(key).map(String::as_str) == value.as_str())
    }
}

/// A connection between two workloads, to this port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    from: String,
    to: String,
    port: u16,
}

impl Edge {
    fn of(caller: &Pod, called: &Pod, port: u16) -> Self {
        Self { from: caller.workload().to_owned(), to: called.workload().to_owned(), port }
    }
}

/// What was seen until it stops.
#[derive(Default)]
struct Seen {
    pods: BTreeMap<Ipv4Addr, Pod>,
    /// The manifests of Services, by their addresses.
    services: BTreeMap<Ipv4Addr, Value>,
    /// Who called whom, at which port; None: an address that is no pod's.
    connections: BTreeSet<(Option<Pod>, Option<Pod>, u16)>,
}

/// Looks at the connections of all pods.
pub struct Watch {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    pub fn begin() -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let thread = spawn(move || {
            let (mut seen, mut asked) = (Seen::default(), None::<Instant>);
            while !ended.load(Ordering::SeqCst) {
                if asked.is_none_or(|asked| asked.elapsed() > ASKS) {
                    seen.ask();
                    asked = Some(Instant::now());
                }
                seen.look();
                park_timeout(LOOKS);
            }
            seen.look();
            seen
        });
        Self { ends, thread }
    }

    /// Every connection between pods was allowed to both, and of what is allowed to those that stay nothing is unused.
    pub fn end(self) {
        self.ends.store(true, Ordering::SeqCst);
        let seen = self.thread.join().unwrap();
        let policies: Value =
            serde_json::from_str(&in_fleet(&["get", "networkpolicies", "--output=json"], "")).unwrap();
        let policies = policies["items"].as_array().unwrap();
        policies.iter().for_each(names_its_peers);
        let policies: Vec<&Value> = policies.iter().map(|policy| &policy["spec"]).collect();
        let mut used = BTreeSet::new();
        for (caller, called, port) in &seen.connections {
            let [from, to] = [caller, called].map(|pod| pod.as_ref().map_or("an address outside", Pod::workload));
            let said = format!("{from} to {to} at {port}");
            if let Some(caller) = caller {
                assert!(allows(&policies, "egress", caller, called.as_ref(), *port), "{said}: not allowed to go out");
            }
            // The node's kubelet and whoever is outside reach what they like: no policy of pods is about them.
            if let (Some(caller), Some(called)) = (caller, called) {
                assert!(allows(&policies, "ingress", called, Some(caller), *port), "{said}: not allowed to come in");
                used.insert(Edge::of(caller, called, *port));
            }
        }
        let stay: BTreeMap<&str, &Pod> = seen
            .pods
            .values()
            .filter(|pod| !pod.labels.contains_key("flotilla/job"))
            .map(|pod| (pod.workload(), pod))
            .collect();
        let mut allowed = BTreeSet::new();
        for (caller, called) in stay.values().flat_map(|caller| stay.values().map(move |called| (caller, called))) {
            for port in called.ports.values() {
                let both = allows(&policies, "egress", caller, Some(called), *port)
                    && allows(&policies, "ingress", called, Some(caller), *port);
                if both {
                    allowed.insert(Edge::of(caller, called, *port));
                }
            }
        }
        let unused: Vec<_> = allowed.difference(&used).collect();
        assert!(unused.is_empty(), "allowed, and nobody needs it: {unused:#?}; used: {used:#?}");
        println!("{} edges between workloads are used, each is allowed: {used:?}", used.len());
    }
}

impl Seen {
    /// Which pod has which address.
    fn ask(&mut self) {
        let pods: Value = serde_json::from_str(&in_fleet(&["get", "pods", "--output=json"], "")).unwrap();
        for manifest in pods["items"].as_array().unwrap() {
            let Some(address) = manifest["status"]["podIP"].as_str() else { continue };
            self.pods.insert(address.parse().unwrap(), Pod::of(manifest));
        }
        let services: Value = serde_json::from_str(&in_fleet(&["get", "services", "--output=json"], "")).unwrap();
        for manifest in services["items"].as_array().unwrap() {
            // Some have none: a name that leads to the pods themselves.
            let Ok(address) = manifest["spec"]["clusterIP"].as_str().unwrap_or_default().parse() else { continue };
            self.services.insert(address, manifest["spec"].clone());
        }
    }

    /// The connections of each network namespace that is a pod's.
    fn look(&mut self) {
        let mut spaces = BTreeSet::new();
        for process in fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
            let Ok(space) = fs::metadata(process.join("ns/net")) else { continue };
            if !spaces.insert(space.ino()) {
                continue;
            }
            // Those that end meanwhile have no connections.
            let tables =
                ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(process.join(table)).unwrap_or_default());
            let sockets: Vec<(End, End, &str)> =
                tables.iter().flat_map(|table| table.lines()).filter_map(socket).collect();
            let served: BTreeSet<u16> =
                sockets.iter().filter(|(.., state)| *state == LISTENS).map(|((_, port), ..)| *port).collect();
            for (local, remote, _) in sockets.iter().filter(|(.., state)| [CONNECTED, OVER].contains(state)) {
                let Some(pod) = self.pods.get(&local.0).filter(|_| !remote.0.is_loopback()) else { continue };
                // A server that drains listens no more.
                let serves = served.contains(&local.1) || pod.ports.values().any(|port| *port == local.1);
                let (caller, called) = if serves { (remote, local) } else { (local, remote) };
                self.note(caller.0, *called);
            }
        }
    }

    /// A pod to which a Service leads; another address is what it is.
    fn behind(&self, (address, port): End) -> Option<End> {
        if address.octets()[..2] != [10, 96] {
            return Some((address, port));
        }
        let service = self.services.get(&address)?;
        let target = service["ports"].as_array()?.iter().find(|one| one["port"].as_u64() == Some(port.into()))?;
        let selector = serde_json::json!({"matchLabels": service["selector"]});
        let (address, pod) = self.pods.iter().find(|(_, pod)| pod.is_selected(&selector))?;
        Some((*address, *pod.ports.get(target["targetPort"].as_str()?)?))
    }

    fn note(&mut self, caller: Ipv4Addr, called: End) {
        // The server sees the node as the caller, where a Service led to it: the caller sees the Service.
        let Some((called, port)) = self.behind(called) else { return };
        // The node, or a pod that is not listed yet, and is looked at again.
        let is_unlisted = |address: &Ipv4Addr| address.octets()[..2] == [10, 244] && !self.pods.contains_key(address);
        if [caller, called].iter().any(is_unlisted) {
            return;
        }
        self.connections.insert((self.pods.get(&caller).cloned(), self.pods.get(&called).cloned(), port));
    }
}

/// A line of /proc/net/tcp or tcp6: both ends, and the state; None: a heading, or an address of IPv6.
fn socket(line: &str) -> Option<(End, End, &str)> {
    let end = |text: &str| -> Option<End> {
        let (address, port) = text.split_once(':')?;
        // As tcp6 writes one of IPv4, and none at all.
        let of_tcp6 = address.strip_prefix("0000000000000000FFFF0000").or(address.strip_prefix(&"0".repeat(24)));
        let address = u32::from_str_radix(of_tcp6.unwrap_or(address), 16).ok()?;
        Some((Ipv4Addr::from(address.to_le_bytes()), u16::from_str_radix(port, 16).ok()?))
    };
    let mut words = line.split_whitespace().skip(1);
    Some((end(words.next()?)?, end(words.next()?)?, words.next()?))
}

/// A rule without peers opens a pod to everybody: only these may. And a namespace is named only where it is the watchers'.
fn names_its_peers(policy: &Value) {
    let name = policy["metadata"]["name"].as_str().unwrap();
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in policy["spec"][direction].as_array().into_iter().flatten() {
            let ports: Vec<_> =
                rule["ports"].as_array().into_iter().flatten().map(|port| port["port"].to_string()).collect();
            let ports = ports.join(" ");
            let everybody = [
                ("gateway", "ingress", "\"https\""),
                ("default", "egress", "53 53"),
                ("certificates", "egress", "443 6443 16443"),
            ];
            let Some(all) = rule[peers].as_array() else {
                assert!(
                    everybody.contains(&(name, direction, ports.as_str())),
                    "{name}: {direction} with everybody: {rule}"
                );
                continue;
            };
            assert!(
                !ports.is_empty() && !all.is_empty(),
                "{name}: {direction} at every port, or with everybody: {rule}"
            );
            for one in all {
                let watchers = serde_json::json!({"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}});
                let is_named = match &one["namespaceSelector"] {
                    Value::Null => one["podSelector"]["matchLabels"].is_object(),
                    namespace => *namespace == watchers,
                };
                assert!(is_named && one["ipBlock"].is_null(), "{name}: {direction} with whom? {one}");
            }
        }
    }
}

/// Whether the policies let a pod have this connection; a peer of None is outside.
fn allows(policies: &[&Value], direction: &str, pod: &Pod, peer: Option<&Pod>, port: u16) -> bool {
    let peers = if direction == "egress" { "to" } else { "from" };
    // The port is the one that serves.
    let server = if direction == "egress" { peer } else { Some(pod) };
    let rules = policies.iter().filter(|policy| pod.is_selected(&policy["podSelector"]));
    rules.flat_map(|policy| policy[direction].as_array().into_iter().flatten()).any(|rule| {
        let of_port = |one: &Value| match &one["port"] {
            Value::String(name) => server.and_then(|server| server.ports.get(name)) == Some(&port),
            number => number.as_u64() == Some(port.into()),
        };
        // Pods of this namespace alone are looked at: a rule for those of another one is none for them.
        let of_peer = |one: &Value| {
            one["namespaceSelector"].is_null() && peer.is_some_and(|peer| peer.is_selected(&one["podSelector"]))
        };
        rule["ports"].as_array().is_none_or(|ports| ports.iter().any(of_port))
            && rule[peers].as_array().is_none_or(|all| all.iter().any(of_peer))
    })
}
