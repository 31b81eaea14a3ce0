//! nats-server with JetStream, and one user per service that may do what the service does and nothing else.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use crate::home::Home;
use crate::process::{Program, Ready};

/// A user and what it may publish and subscribe.
struct User {
    name: &'static str,
    publish: &'static [&'static str],
    subscribe: &'static [&'static str],
}

/// Who may do what. Only `todo` publishes to the todo events; `observer` is for event consumers that only read.
const USERS: [User; 5] = [
    User { name: "admin", publish: &[">"], subscribe: &[">"] },
    User {
        name: "todo",
        publish: &[
            "evt.todo.>",
            "hint.outbox.todo",
            "$JS.API.STREAM.INFO.EVENTS_TODO",
            "$JS.API.STREAM.CREATE.EVENTS_TODO",
            "$JS.API.STREAM.MSG.GET.EVENTS_TODO",
        ],
        subscribe: &["_INBOX_todo.>", "hint.outbox.todo"],
    },
    User {
        name: "search-projector",
        publish: &[
            "dlq.search-projector.>",
            "$JS.API.STREAM.INFO.DLQ",
            "$JS.API.STREAM.CREATE.DLQ",
            "$JS.API.STREAM.INFO.EVENTS_TODO",
            "$JS.API.CONSUMER.INFO.EVENTS_TODO.search-projector",
            "$JS.API.CONSUMER.CREATE.EVENTS_TODO.search-projector",
            "$JS.API.CONSUMER.CREATE.EVENTS_TODO.search-projector.>",
            "$JS.API.CONSUMER.MSG.NEXT.EVENTS_TODO.search-projector",
            "$JS.ACK.EVENTS_TODO.search-projector.>",
            "$JS.ACK.*.*.EVENTS_TODO.search-projector.>",
            // What is replayed to it, and what becomes of that.
            "replayed.search-projector",
            "$JS.API.STREAM.INFO.REPLAY",
            "$JS.API.STREAM.CREATE.REPLAY",
            "$JS.API.CONSUMER.INFO.REPLAY.search-projector",
            "$JS.API.CONSUMER.CREATE.REPLAY.search-projector",
            "$JS.API.CONSUMER.CREATE.REPLAY.search-projector.>",
            "$JS.API.CONSUMER.MSG.NEXT.REPLAY.search-projector",
            "$JS.ACK.REPLAY.search-projector.>",
            "$JS.ACK.*.*.REPLAY.search-projector.>",
            // The backstop: what JetStream itself gave up on.
            "$JS.API.STREAM.MSG.GET.EVENTS_TODO",
            "$JS.API.STREAM.INFO.ADVISORIES",
            "$JS.API.STREAM.CREATE.ADVISORIES",
            "$JS.API.CONSUMER.INFO.ADVISORIES.backstop-EVENTS_TODO-search-projector",
            "$JS.API.CONSUMER.CREATE.ADVISORIES.backstop-EVENTS_TODO-search-projector",
            "$JS.API.CONSUMER.MSG.NEXT.ADVISORIES.backstop-EVENTS_TODO-search-projector",
            "$JS.ACK.ADVISORIES.backstop-EVENTS_TODO-search-projector.>",
            "$JS.ACK.*.*.ADVISORIES.backstop-EVENTS_TODO-search-projector.>",
        ],
        subscribe: &["_INBOX_search-projector.>"],
    },
    User {
        name: "operations",
        publish: &[
            "replay.>",
            "$JS.API.STREAM.INFO.DLQ",
            "$JS.API.STREAM.CREATE.DLQ",
            "$JS.API.CONSUMER.INFO.DLQ.operations",
            "$JS.API.CONSUMER.CREATE.DLQ.operations",
            "$JS.API.CONSUMER.CREATE.DLQ.operations.>",
            "$JS.API.CONSUMER.MSG.NEXT.DLQ.operations",
            "$JS.ACK.DLQ.operations.>",
            "$JS.ACK.*.*.DLQ.operations.>",
            "$JS.API.STREAM.INFO.REPLAY",
            "$JS.API.STREAM.CREATE.REPLAY",
            "$JS.API.STREAM.MSG.GET.REPLAY",
            "$JS.API.CONSUMER.INFO.REPLAY.*",
            "$JS.API.CONSUMER.CREATE.REPLAY.operations",
            "$JS.API.CONSUMER.CREATE.REPLAY.operations.>",
            "$JS.API.CONSUMER.MSG.NEXT.REPLAY.operations",
            "$JS.ACK.REPLAY.operations.>",
            "$JS.ACK.*.*.REPLAY.operations.>",
            // A range of a stream is replayed from there.
            "$JS.API.STREAM.INFO.EVENTS_TODO",
            "$JS.API.STREAM.MSG.GET.EVENTS_TODO",
        ],
        subscribe: &["_INBOX_operations.>"],
    },
    User {
        name: "observer",
        publish: &[
            "$JS.API.INFO",
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.INFO.EVENTS_TODO",
            "$JS.API.STREAM.MSG.GET.EVENTS_TODO",
            "$JS.API.CONSUMER.CREATE.EVENTS_TODO.>",
            "$JS.API.CONSUMER.INFO.EVENTS_TODO.>",
            "$JS.API.CONSUMER.MSG.NEXT.EVENTS_TODO.>",
            "$JS.ACK.EVENTS_TODO.>",
        ],
        subscribe: &["_INBOX.>", "evt.>"],
    },
];

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
        let mut users = String::new();
        for user in &USERS {
            let password = password(home, user.name)?;
            let quoted = |subjects: &[&str]| {
                subjects.iter().map(|subject| format!("\"{subject}\"")).collect::<Vec<_>>().join(", ")
            };
            users.push_str(&format!(
                "    {{ user: \"{}\", password: \"{password}\", permissions: {{ publish: [{}], subscribe: [{}] }} }}\n",
                user.name,
                quoted(user.publish),
                quoted(user.subscribe)
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
             jetstream {{ store_dir: \"{}\" }}\nauthorization {{\n  users: [\n{users}  ]\n}}\n",
            self.port,
            self.monitor,
            self.store.display()
        ))
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
