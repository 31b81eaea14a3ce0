//! nats-server with JetStream, and one user per service that may do what the service does and nothing else.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use crate::home::Home;
use crate::process::{Program, Ready};

/// A user and what it may publish and subscribe.
struct User {
    name: &'static str,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

fn texts(subjects: &[&str]) -> Vec<String> {
    subjects.iter().map(|subject| (*subject).to_owned()).collect()
}

/// What it takes to pull from a stream by a durable consumer, and to make it.
fn pulls(stream: &str, durable: &str) -> Vec<String> {
    vec![
        format!("$JS.API.STREAM.INFO.{stream}"),
        format!("$JS.API.CONSUMER.INFO.{stream}.{durable}"),
        format!("$JS.API.CONSUMER.CREATE.{stream}.{durable}"),
        format!("$JS.API.CONSUMER.CREATE.{stream}.{durable}.>"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"),
        format!("$JS.ACK.{stream}.{durable}.>"),
        format!("$JS.ACK.*.*.{stream}.{durable}.>"),
    ]
}

/// What a consumer of the `consumer` crate does: its stream, its dead letters, its replays, and the backstop, which
/// looks for what JetStream itself gave up on.
fn consumes(stream: &str, durable: &str) -> Vec<String> {
    [
        pulls(stream, durable),
        pulls("REPLAY", durable),
        pulls("ADVISORIES", &format!("backstop-{stream}-{durable}")),
        texts(&["$JS.API.STREAM.INFO.DLQ", "$JS.API.STREAM.CREATE.DLQ", "$JS.API.STREAM.CREATE.REPLAY"]),
        texts(&["$JS.API.STREAM.CREATE.ADVISORIES"]),
        vec![
            format!("dlq.{durable}.>"),
            format!("replayed.{durable}"),
            format!("$JS.API.STREAM.MSG.GET.{stream}"),
            // Back to the beginning.
            format!("$JS.API.CONSUMER.RESET.{stream}.{durable}"),
        ],
    ]
    .concat()
}

/// Who may do what. Only `todo` publishes to the todo events; `observer` is for event consumers that only read.
fn users() -> Vec<User> {
    let todo = [
        "evt.todo.>",
        "hint.outbox.todo",
        "$JS.API.STREAM.INFO.EVENTS_TODO",
        "$JS.API.STREAM.CREATE.EVENTS_TODO",
        "$JS.API.STREAM.UPDATE.EVENTS_TODO",
        "$JS.API.STREAM.MSG.GET.EVENTS_TODO",
    ];
    let projector = ["search-projector", "search-projector-rebuild"].map(|durable| consumes("EVENTS_TODO", durable));
    let operations = [
        "replay.>",
        "audit.>",
        "$JS.API.STREAM.INFO.AUDIT",
        "$JS.API.STREAM.CREATE.AUDIT",
        "$JS.API.STREAM.CREATE.DLQ",
        "$JS.API.STREAM.CREATE.REPLAY",
        "$JS.API.STREAM.MSG.GET.REPLAY",
        "$JS.API.CONSUMER.INFO.REPLAY.*",
        // Letters that a restored database has lost are read again.
        "$JS.API.CONSUMER.RESET.DLQ.operations",
        // A range of a stream is replayed from there.
        "$JS.API.STREAM.INFO.EVENTS_TODO",
        "$JS.API.STREAM.MSG.GET.EVENTS_TODO",
    ];
    let observer = [
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.INFO.EVENTS_TODO",
        "$JS.API.STREAM.MSG.GET.EVENTS_TODO",
        "$JS.API.CONSUMER.CREATE.EVENTS_TODO.>",
        "$JS.API.CONSUMER.INFO.EVENTS_TODO.>",
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS_TODO.>",
        "$JS.ACK.EVENTS_TODO.>",
    ];
    vec![
        User { name: "admin", publish: texts(&[">"]), subscribe: texts(&[">"]) },
        User { name: "todo", publish: texts(&todo), subscribe: texts(&["_INBOX_todo.>", "hint.outbox.todo"]) },
        User {
            name: "search-projector",
            publish: projector.concat(),
            subscribe: texts(&["_INBOX_search-projector.>"]),
        },
        User {
            name: "operations",
            publish: [texts(&operations), pulls("DLQ", "operations"), pulls("REPLAY", "operations")].concat(),
            subscribe: texts(&["_INBOX_operations.>"]),
        },
        User { name: "observer", publish: texts(&observer), subscribe: texts(&["_INBOX.>", "evt.>"]) },
    ]
}

/// A server.
#[derive(Debug, Clone)]
pub struct Nats {
    /// Its port on loopback.
    pub port: u16,
    /// The port of its monitoring pages.
    pub monitor: u16,
    /// Where JetStream keeps its streams.
    pub store: PathBuf,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// Its place in a cluster: its number, its port for the others, and theirs.
    cluster: Option<(usize, u16, Vec<u16>)>,
}

impl Nats {
    /// Writes the server's configuration.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare(home: &Home, program: &Path, port: u16, monitor: u16) -> Result<Self, anyhow::Error> {
        let server = Self {
            port,
            monitor,
            store: home.path("data/nats"),
            program: program.to_owned(),
            config: home.path("conf/nats.conf"),
            log: home.log("nats"),
            cluster: None,
        };
        server.written(home)
    }

    /// Writes the configurations of a cluster, whose servers share the users of the home.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare_cluster(home: &Home, program: &Path, ports: &[(u16, u16, u16)]) -> Result<Vec<Self>, anyhow::Error> {
        let routes: Vec<u16> = ports.iter().map(|(_, _, route)| *route).collect();
        let server = |(number, &(port, monitor, route)): (usize, &(u16, u16, u16))| {
            let server = Self {
                port,
                monitor,
                store: home.path(&format!("data/nats-{number}")),
                program: program.to_owned(),
                config: home.path(&format!("conf/nats-{number}.conf")),
                log: home.log(&format!("nats-{number}")),
                cluster: Some((number, route, routes.clone())),
            };
            server.written(home)
        };
        ports.iter().enumerate().map(server).collect()
    }

    fn written(self, home: &Home) -> Result<Self, anyhow::Error> {
        std::fs::create_dir_all(&self.store)?;
        crate::home::write_secret(&self.config, self.configuration(home)?.as_bytes())
            .context("writing the configuration of nats-server")?;
        Ok(self)
    }

    fn configuration(&self, home: &Home) -> Result<String, anyhow::Error> {
        let mut lines = String::new();
        for user in &users() {
            let password = password(home, user.name)?;
            let quoted = |subjects: &[String]| {
                subjects.iter().map(|subject| format!("\"{subject}\"")).collect::<Vec<_>>().join(", ")
            };
            lines.push_str(&format!(
                "    {{ user: \"{}\", password: \"{password}\", permissions: {{ publish: [{}], subscribe: [{}] }} }}\n",
                user.name,
                quoted(&user.publish),
                quoted(&user.subscribe)
            ));
        }
        let (name, cluster) = match &self.cluster {
            None => ("flotilla".to_owned(), String::new()),
            Some((number, port, routes)) => {
                let routes: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
                let routes = routes.join(", ");
                let cluster = format!("cluster {{ name: flotilla, listen: 127.0.0.1:{port}, routes: [{routes}] }}\n");
                (format!("flotilla-{number}"), cluster)
            }
        };
        Ok(format!(
            "host: 127.0.0.1\nport: {}\nhttp: \"127.0.0.1:{}\"\nserver_name: {name}\n{cluster}\
             jetstream {{ store_dir: \"{}\" }}\nauthorization {{\n  users: [\n{lines}  ]\n}}\n",
            self.port,
            self.monitor,
            self.store.display()
        ))
    }

    /// The same, as those see it who come through a proxy at this port.
    #[must_use]
    pub fn through(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    /// The program to run.
    #[must_use]
    pub fn program(&self) -> Program {
        Program {
            name: "nats".to_owned(),
            path: self.program.clone(),
            args: vec!["-c".to_owned(), self.config.display().to_string()],
            env: Vec::new(),
            log: self.log.clone(),
            user: None,
            stop: Signal::SIGTERM,
            ready: Ready::Http(format!("http://127.0.0.1:{}/healthz", self.monitor)),
        }
    }

    /// The login of a user.
    ///
    /// # Errors
    /// Its password cannot be read or made.
    pub fn url(&self, home: &Home, user: &str) -> Result<String, anyhow::Error> {
        Ok(format!("nats://{user}:{}@127.0.0.1:{}", password(home, user)?, self.port))
    }
}

fn password(home: &Home, user: &str) -> Result<String, anyhow::Error> {
    home.secret(&format!("nats-{user}-password"))
}
