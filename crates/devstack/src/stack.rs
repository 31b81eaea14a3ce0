//! A whole fleet on this machine: the backing services, the issuer, and the services in the order of their dependencies.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::Reporter;
use crate::certificates::Certificates;
use crate::faults::Proxies;
use crate::install::{self, Programs};
use crate::issuer::{ISSUER, Issuer, PROVIDER, PROVIDER_JWKS, write_service_keys};
use crate::login;
use crate::nats::{self, Nats};
use crate::observe::{self, Observe, Watched, Watching};
use crate::opensearch::{self, OpenSearch};
use crate::ports::Ports;
use crate::postgres::{Postgres, SUPERUSER, roles, write_urls};
use crate::process::{Program, Ready, tail};
use crate::provider::{self, Provider};
use crate::redis::{self, Redis};
use crate::stack_dir::{self, StackDir};
use crate::supervisor::{Kind, State, StatusFile, Supervisor, Unit, now};

/// The settings of a stack.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its folder.
    pub home: PathBuf,
    /// The folder of the services' programs.
    pub programs: PathBuf,
    /// The gateway's port; 0 for any free one.
    pub gateway_port: u16,
    /// Whether the other ports are the documented ones, if they are free.
    pub usual_ports: bool,
    /// Whether Postgres must outlive a power failure.
    pub durable: bool,
    /// Whether services, PostgreSQL, NATS and the login before OpenSearch speak TLS alone, by an authority of the folder.
    pub tls: bool,
    /// Where services export spans to, where nothing here takes them.
    pub otlp_endpoint: Option<String>,
    /// Whether Prometheus, Alertmanager and Zipkin watch the fleet.
    pub observe: Option<Observe>,
    /// Whether the services reach each other and the backing services through fault proxies.
    pub fault_proxy: bool,
    /// The OpenID provider of people, in place of the development provider.
    pub provider: Option<Provider>,
    /// The backing services alone, without the services: for integration tests.
    pub infra_only: bool,
    /// Variables for every service, beyond those it needs.
    pub env: Vec<(String, String)>,
}

/// A running stack.
pub struct Stack {
    /// Its folder.
    pub home: StackDir,
    /// The state of every unit.
    pub status_file: StatusFile,
    /// The cluster.
    pub postgres: Postgres,
    supervisor: Arc<Supervisor>,
    issuer_stop: CancellationToken,
    _lock: Lock,
}

/// The file with the states of a stack's units, inside its folder.
pub const STATUS_FILE: &str = "run/state.json";
/// Locked by the process that supervises the folder.
pub const LOCK: &str = "run/lock";

/// Held by the process that works on a folder.
pub struct Lock(#[expect(dead_code, reason = "it is unlocked when it is closed")] File);

/// Takes the folder for this process.
///
/// # Errors
/// Another process has it.
pub async fn lock(home: &StackDir) -> Result<Lock, anyhow::Error> {
    let lock = File::create(home.path(LOCK))?;
    // A process that checks whether a stack runs holds the lock for a moment.
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut patience = 20;
    while lock.try_lock().is_err() {
        if patience == 0 {
            bail!("another process runs a stack in {}: `flotilla down` stops it", home.path("").display());
        }
        tick.tick().await;
        patience -= 1;
    }
    // That of a supervisor that was killed says that all is up.
    std::fs::remove_file(home.path(STATUS_FILE)).ok();
    Ok(Lock(lock))
}

impl Stack {
    /// Brings everything up, and reports each step; its status file does not say so yet. After an error nothing is left running.
    ///
    /// # Errors
    /// One clear message: what failed, where its log is, what to do.
    pub async fn start(options: &Options, say: Reporter) -> Result<Self, anyhow::Error> {
        let home = StackDir::open(&options.home)?;
        stack_dir::check_disk(&options.home)?;
        let lock = lock(&home).await?;
        let mut ports = Ports::default();
        let gateway_port = match options.gateway_port {
            0 => ports.pick(0)?,
            port => ports.exactly(port)?,
        };
        let programs = install::all(&say).await?;
        let status_file = StatusFile::new(home.path(STATUS_FILE));
        let supervisor = Arc::new(Supervisor::new(status_file.clone())?);
        let issuer_stop = CancellationToken::new();
        let starting = Startup { options, home: &home, say: &say, supervisor: &supervisor, status_file: &status_file };
        match Box::pin(starting.all(&programs, ports, gateway_port, &issuer_stop)).await {
            Ok(postgres) => Ok(Self { home, status_file, postgres, supervisor, issuer_stop, _lock: lock }),
            Err(error) => {
                supervisor.stop_all().await;
                issuer_stop.cancel();
                std::fs::remove_file(home.path(STATUS_FILE)).ok();
                Err(error)
            }
        }
    }

    /// Stops everything, services first, in the reverse order of their start.
    pub async fn stop(self) {
        self.supervisor.stop_all().await;
        self.issuer_stop.cancel();
        std::fs::remove_file(self.home.path(STATUS_FILE)).ok();
    }
}

struct Startup<'a> {
    options: &'a Options,
    home: &'a StackDir,
    say: &'a Reporter,
    supervisor: &'a Arc<Supervisor>,
    status_file: &'a StatusFile,
}

/// The addresses that services need, each other's included.
struct Seen {
    /// The folder of the certificate, where they speak TLS.
    tls: Option<String>,
    /// Where spans go.
    otlp: Option<String>,
    postgres: Postgres,
    nats: Nats,
    opensearch: String,
    /// None where this machine has none.
    redis: Option<String>,
    issuer_port: u16,
    /// The issuer's URL of the OpenID provider, in place of the development provider.
    provider: Option<String>,
    /// The port at which the edge calls each service.
    upstreams: BTreeMap<&'static str, u16>,
    /// For callers, and for operations.
    ports: BTreeMap<&'static str, (Option<u16>, u16)>,
}

/// Whether a service starts once all backing services are up; the others start beside OpenSearch, which takes longest.
const fn needs_all(service: &fleet::Service) -> bool {
    service.search_engine || service.edge
}

impl Startup<'_> {
    async fn all(
        &self,
        programs: &Programs,
        mut ports: Ports,
        gateway_port: u16,
        issuer_stop: &CancellationToken,
    ) -> Result<Postgres, anyhow::Error> {
        let mut pick = |wished: u16| ports.pick(if self.options.usual_ports { wished } else { 0 });
        let (postgres_port, nats_port, monitor_port) = (pick(15432)?, pick(14222)?, pick(18222)?);
        let (transport_port, redis_port) = (pick(19300)?, pick(16379)?);
        let issuer_port = pick(18090)?;
        let provider_port = pick(18091)?;
        let watched = self.options.observe.as_ref().map(|_| Watched::pick(&mut pick)).transpose()?;
        let mut service_ports = BTreeMap::new();
        for service in fleet::SERVICES {
            let port = match service.port {
                Some(_) if service.edge => Some(gateway_port),
                Some(wished) => Some(pick(wished)?),
                None => None,
            };
            service_ports.insert(service.name, (port, pick(service.ops_port)?));
        }
        let opensearch_socket = ports.within(opensearch::PORTS)?;
        let opensearch_port = opensearch_socket.local_addr()?.port();
        let mut behind = vec![
            ("postgres", postgres_port),
            ("nats", nats_port),
            ("opensearch", opensearch_port),
            ("redis", redis_port),
        ];
        let callable = fleet::SERVICES.iter().filter(|service| !service.serves.is_empty());
        behind.extend(callable.filter_map(|service| Some((service.name, service_ports[service.name].0?))));
        let proxies = if self.options.fault_proxy { Some(self.proxies(&mut ports, &behind).await?) } else { None };
        let port_to = |name: &str, port| proxies.as_ref().map_or(port, |proxies| proxies.port_of(name, port));

        let started = Instant::now();
        let certificates = if self.options.tls { Some(Certificates::renew(self.home)?) } else { None };
        if certificates.is_none() {
            Certificates::remove(self.home)?;
        }
        let tls = certificates.as_ref().map(|certificates| certificates.folder.clone());
        let scraped = fleet::SERVICES.iter().map(|service| (service.name, service_ports[service.name].1));
        observe::configure(self.home, scraped, tls.as_deref(), watched.as_ref())?;
        let watching = Watching::fetched(self.say, self.options.observe.as_ref(), watched).await?;
        let postgres = Postgres::prepare(self.home, &programs.postgres, postgres_port, self.options.durable).await?;
        let (java, jars, ports) = (&programs.java, &programs.opensearch_jars, (opensearch_port, transport_port));
        let mut node = OpenSearch::prepare(self.home, java, jars, ports)?;
        match login::namespace().await {
            Some(namespace) => {
                let flotilla = self.options.programs.join("flotilla");
                node = node.behind_a_login(self.home, namespace, flotilla, opensearch_socket)?;
            }
            None => {
                drop(opensearch_socket);
                (self.say)(
                    "OpenSearch takes everybody, in plain text: this machine lets us have no network namespace (docs/security.md#opensearch)",
                );
            }
        }
        let accounts = nats::Layout::Fleet(Vec::new());
        let mut nats = Nats::prepare(self.home, &programs.nats_server, (nats_port, monitor_port), accounts)?;
        if let Some(certificates) = &certificates {
            (node, nats) = (node.over_tls(certificates), nats.over_tls(self.home, certificates)?);
        }
        let redis = programs.redis.as_ref();
        let redis =
            redis.map(|program| Redis::prepare(self.home, program, redis_port, certificates.as_ref())).transpose()?;
        let upstream =
            |service: &fleet::Service| Some((service.name, port_to(service.name, service_ports[service.name].0?)));
        let (provider, beside) = match &self.options.provider {
            None => (None, None),
            Some(Provider::Elsewhere(issuer)) => (Some(issuer.clone()), None),
            Some(Provider::Beside(script)) => {
                let (program, issuer) = provider::program(self.home, script, provider_port).await?;
                (Some(issuer), Some(program))
            }
        };
        let seen = Seen {
            tls: tls.map(|folder| folder.display().to_string()),
            otlp: watched.as_ref().map(Watched::otlp).or_else(|| self.options.otlp_endpoint.clone()),
            postgres: postgres.through(port_to("postgres", postgres_port)),
            nats: nats.through(port_to("nats", nats_port)),
            opensearch: node.url(port_to("opensearch", opensearch_port)),
            redis: redis.as_ref().map(|redis| redis.url(port_to("redis", redis_port))),
            issuer_port,
            provider,
            upstreams: fleet::SERVICES.iter().filter_map(upstream).collect(),
            ports: service_ports,
        };
        self.step("prepared the backing services' folders and configuration", started);

        // OpenSearch takes longest: everything that does not need it starts meanwhile.
        let (supervisor, program, unit) = (Arc::clone(self.supervisor), node.program(), self.opensearch_unit(&node)?);
        let opensearch_started = Instant::now();
        let opensearch = async move { supervisor.start(program, unit).await };
        let rest = async {
            let started = Instant::now();
            self.supervisor.start(postgres.program()?, self.postgres_unit(&postgres)?).await?;
            self.step(&format!("PostgreSQL on port {postgres_port}"), started);
            if self.options.infra_only {
                return Ok(());
            }
            let started = Instant::now();
            self.supervisor.start(nats.program(), self.nats_unit(&nats)).await?;
            let provisioned = nats::provision(self.home, &nats.address(), nats::Wanted::default()).await;
            provisioned.context("making the streams and the durable consumers")?;
            self.step(&format!("nats-server on port {nats_port}, with its streams"), started);
            if let Some(redis) = &redis {
                let started = Instant::now();
                match self.supervisor.start(redis.program(), self.unit("redis", Kind::Infra, redis.port)).await {
                    Ok(()) => self.step(&format!("Redis on port {redis_port}"), started),
                    // The gateway goes on by its own count, and uses it once it is there.
                    Err(error) => (self.say)(&format!("NO REDIS, so each gateway counts rates by itself: {error:#}")),
                }
            }
            let (home, status_file) = (self.home.clone(), self.status_file.clone());
            tokio_util::task::TaskTracker::new().spawn(administrate(
                home,
                status_file,
                nats.address(),
                issuer_stop.clone(),
            ));
            if let Some(watching) = &watching {
                self.watcher(observe::collector(self.home, watching)?).await;
            }
            Issuer::serve(self.home.clone(), issuer_port, issuer_stop.clone()).await?;
            self.status_file.add(self.issuer_unit(issuer_port));
            if let Some(program) = beside {
                let (started, url) = (Instant::now(), seen.provider.clone());
                let unit = Unit { url, ..self.unit(&program.name, Kind::Infra, provider_port) };
                self.supervisor.start(program, unit).await?;
                self.step(&format!("the OpenID provider on port {provider_port}"), started);
            }
            for service in fleet::SERVICES.iter().filter(|service| !needs_all(service)) {
                self.service(service, &seen).await?;
            }
            Ok(())
        };
        let (opensearch, rest): (Result<(), anyhow::Error>, Result<(), anyhow::Error>) = tokio::join!(opensearch, rest);
        rest?;
        opensearch?;
        self.step(&format!("OpenSearch on port {opensearch_port}"), opensearch_started);
        if !self.options.infra_only {
            for service in fleet::SERVICES.iter().filter(|service| needs_all(service)) {
                self.service(service, &seen).await?;
            }
        }
        if let Some(watching) = &watching {
            for watcher in observe::watchers(self.home, watching, (java, &self.options.programs))? {
                self.watcher(watcher).await;
            }
        }
        Ok(postgres)
    }

    fn step(&self, what: &str, started: Instant) {
        (self.say)(&format!("{what}: {:.1} s", started.elapsed().as_secs_f64()));
    }

    /// Starts a service with what its row says that it needs.
    async fn service(&self, service: &fleet::Service, seen: &Seen) -> Result<(), anyhow::Error> {
        if service.database.is_some() {
            self.database(service, &seen.postgres).await?;
        }
        if let Some(file) = service.page_token_key {
            self.home.secret(file)?;
        }
        if service.signs || !service.asks.is_empty() {
            write_service_keys(self.home)?;
        }
        if service.search_engine {
            self.home.write_secret("opensearch-url", &seen.opensearch)?;
        }
        if service.shares_rates
            && let Some(redis) = &seen.redis
        {
            self.home.write_secret(redis::URL, redis)?;
        }
        let secret = |file: &str| secret_file(self.home, file).display().to_string();
        let (port, ops) = seen.ports[service.name];
        let around = fleet::Surroundings {
            host: Ipv4Addr::LOCALHOST.into(),
            ports: &|service| seen.ports[service.name],
            secret: &secret,
            tls: seen.tls.as_deref(),
            upstream: &|service| Some(format!("{}://127.0.0.1:{}", self.scheme(), seen.upstreams.get(service.name)?)),
        };
        let jwks = format!("http://127.0.0.1:{}/jwks.json", seen.issuer_port);
        let people = format!("http://127.0.0.1:{}{PROVIDER_JWKS}", seen.issuer_port);
        let own = (PROVIDER, Some(people.as_str()));
        let provider = seen.provider.as_deref().map_or(own, |provider| (provider, None));
        let edge = format!("{}://127.0.0.1:{}", self.scheme(), seen.ports["gateway"].0.unwrap_or_default());
        let shared = fleet::shared(&seen.nats.address(), (ISSUER, &jwks), provider, &edge);
        let mut env: Vec<_> = service.variables(&around).into_iter().chain(shared).collect();
        if seen.redis.is_none() {
            env.retain(|(name, _)| *name != fleet::REDIS_URL);
        }
        if port.is_some() {
            // So that a gRPC client on this machine can list the services.
            env.push(("FLOTILLA_REFLECTION", "true".to_owned()));
        }
        if let Some(endpoint) = &seen.otlp {
            env.push(("FLOTILLA_OTLP_ENDPOINT", endpoint.clone()));
        }
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.run(service.name, port.unwrap_or(ops), ops, env).await
    }

    /// Makes and migrates the database of a service, and writes the files that hold its logins.
    async fn database(&self, service: &fleet::Service, postgres: &Postgres) -> Result<(), anyhow::Error> {
        let (started, name) = (Instant::now(), service.name);
        let roles = roles(self.home, name)?;
        let provisioned = postgres.provision(name, &roles, name).await;
        provisioned.with_context(|| format!("making the roles and the database of {name}"))?;
        write_urls(self.home, service, &postgres.place())?;
        self.migrate(service).await?;
        self.step(&format!("migrated the database of {name}"), started);
        Ok(())
    }

    async fn proxies(&self, ports: &mut Ports, behind: &[(&'static str, u16)]) -> Result<Proxies, anyhow::Error> {
        let started = Instant::now();
        let program = install::toxiproxy(self.say).await?;
        let proxies = Proxies::prepare(self.home, &program, ports, behind)?;
        let unit = Unit {
            url: Some(format!("http://127.0.0.1:{}", proxies.api)),
            ..self.unit("toxiproxy", Kind::Infra, proxies.api)
        };
        self.supervisor.start(proxies.program(), unit).await?;
        self.step("fault proxies", started);
        Ok(proxies)
    }

    async fn migrate(&self, service: &fleet::Service) -> Result<(), anyhow::Error> {
        let ((variable, file), service) = (service.owner_secret(), service.name);
        let program = self.options.programs.join(service);
        let log = self.home.log(&format!("{service}-migrate"));
        let output = Command::new(&program)
            .arg("migrate")
            .kill_on_drop(true)
            .env(variable, self.home.path("secrets").join(file))
            .output()
            .await
            .with_context(|| format!("running {} migrate: was the workspace built?", program.display()))?;
        std::fs::write(&log, [&output.stdout[..], &output.stderr[..]].concat())?;
        if !output.status.success() {
            bail!("the migration of {service} failed. Its log {} ends with:\n{}", log.display(), tail(&log, 12));
        }
        Ok(())
    }

    async fn run(&self, name: &str, port: u16, ops: u16, mut env: Vec<(String, String)>) -> Result<(), anyhow::Error> {
        let started = Instant::now();
        env.extend(self.options.env.iter().cloned());
        let program = Program {
            name: name.to_owned(),
            path: self.options.programs.join(name),
            args: vec!["serve".to_owned()],
            env,
            log: self.home.log(name),
            user: None,
            stop: Signal::SIGTERM,
            ready: Ready::Http(format!("{}://127.0.0.1:{ops}/readyz", self.scheme())),
            socket: None,
            alive: Some(format!("{}://127.0.0.1:{ops}/healthz", self.scheme())),
        };
        let unit = Unit { ops: Some(format!("127.0.0.1:{ops}")), ..self.unit(name, Kind::Service, port) };
        self.supervisor.start(program, unit).await?;
        self.step(&format!("{name} on port {port}"), started);
        Ok(())
    }

    /// Starts what watches; the fleet does not depend on it.
    async fn watcher(&self, (program, port): (Program, u16)) {
        let (started, name) = (Instant::now(), program.name.clone());
        let unit = Unit { url: Some(format!("http://127.0.0.1:{port}")), ..self.unit(&name, Kind::Infra, port) };
        match self.supervisor.start(program, unit).await {
            Ok(()) => self.step(&format!("{name} on port {port}"), started),
            Err(error) => (self.say)(&format!("NOT WATCHED by {name}: {error:#}")),
        }
    }

    const fn scheme(&self) -> &'static str {
        if self.options.tls { "https" } else { "http" }
    }

    fn unit(&self, name: &str, kind: Kind, port: u16) -> Unit {
        Unit {
            name: name.to_owned(),
            kind,
            pid: None,
            address: format!("127.0.0.1:{port}"),
            state: State::Starting,
            since: now(),
            restarts: 0,
            log: self.home.log(name),
            ops: None,
            data_dir: None,
            url: None,
            creds_file: None,
        }
    }

    fn postgres_unit(&self, postgres: &Postgres) -> Result<Unit, anyhow::Error> {
        let creds = json!({
            "url": postgres.superuser_url("todo"), "user": SUPERUSER, "password": postgres.password(),
        });
        let creds = self.home.write_secret("postgres.json", &creds.to_string())?;
        Ok(Unit {
            data_dir: Some(postgres.data.clone()),
            url: Some(format!("postgres://127.0.0.1:{}/todo", postgres.port)),
            creds_file: Some(creds),
            ..self.unit("postgres", Kind::Infra, postgres.port)
        })
    }

    fn nats_unit(&self, nats: &Nats) -> Unit {
        Unit {
            data_dir: Some(nats.store.clone()),
            url: Some(nats.address()),
            // An operator inspects the todos' events first.
            creds_file: Some(nats::credentials_file(self.home, &nats::administration("TODO"))),
            ..self.unit("nats", Kind::Infra, nats.port)
        }
    }

    fn opensearch_unit(&self, node: &OpenSearch) -> Result<Unit, anyhow::Error> {
        let credentials = node.credentials().map(|(user, password)| {
            let creds = json!({ "url": node.url(node.port), "user": user, "password": password });
            self.home.write_secret("opensearch.json", &creds.to_string())
        });
        Ok(Unit {
            data_dir: Some(node.data.clone()),
            url: Some(node.address()),
            creds_file: credentials.transpose()?,
            ..self.unit("opensearch", Kind::Infra, node.port)
        })
    }

    fn issuer_unit(&self, port: u16) -> Unit {
        Unit {
            pid: Some(std::process::id()),
            state: State::Ready,
            url: Some(format!("http://127.0.0.1:{port}")),
            log: self.home.log("supervisor"),
            ..self.unit("issuer", Kind::Infra, port)
        }
    }
}

/// Makes streams and durable consumers again after each start of nats-server: its store may have been lost.
async fn administrate(home: StackDir, status_file: StatusFile, address: String, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    let (mut seen, mut said) = (0, false);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let units = status_file.read().units;
        let Some(unit) = units.iter().find(|unit| unit.name == "nats") else { continue };
        if unit.restarts == seen || unit.state != State::Ready {
            continue;
        }
        match nats::provision(&home, &address, nats::Wanted::default()).await {
            Ok(()) => (seen, said) = (unit.restarts, false),
            Err(error) if !std::mem::replace(&mut said, true) => {
                eprintln!("the streams and the durable consumers cannot be maintained: {error:#}");
            }
            Err(_) => {}
        }
    }
}

/// Where a secret of a service is that its row names; a login of NATS has a place of its own.
#[must_use]
pub fn secret_file(home: &StackDir, name: &str) -> PathBuf {
    match name.strip_suffix(".creds") {
        Some(login) => nats::credentials_file(home, login),
        None => home.path("secrets").join(name),
    }
}
