//! The lifecycle of the stack: up, down, status.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use clap::builder::BoolishValueParser;
use devstack::backup::{KEY, Repository};
use devstack::login::{Proxy, Tls};
use devstack::provider::Provider;
use devstack::stack::{LOCK, STATUS_FILE};
use devstack::{Options, Reporter, Stack, Unit, process};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::adoption;
use crate::context::Context;
use crate::demo;
use crate::observe::ObserveArgs;

/// The file that says that the demo need not run by itself: there is data.
pub const DEMO_DONE: &str = "data/demo-done";

/// The gateway's default port.
fn edge_port() -> u16 {
    fleet::SERVICES.iter().find(|service| service.edge).and_then(|service| service.port).unwrap_or_default()
}

/// How to bring the fleet up.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// The gateway's port; 0 takes any free port.
    #[arg(long, env = "FLOTILLA_GATEWAY_PORT", default_value_t = edge_port())]
    gateway_port: u16,
    /// Export spans to this OTLP endpoint (gRPC), for example http://127.0.0.1:4317.
    #[arg(long, env = "FLOTILLA_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    telemetry: TelemetryArgs,
    /// Speak TLS between services, PostgreSQL, NATS, OpenSearch and Redis, by an authority of the folder: secrets/tls-authority.crt.
    #[arg(long, env = "FLOTILLA_TLS", value_parser = BoolishValueParser::new())]
    tls: bool,
    /// The OpenID provider of people, by its issuer's URL, in place of the development provider.
    #[arg(long, env = "FLOTILLA_OPENID_PROVIDER")]
    provider: Option<String>,
    /// Run a real OpenID provider beside the fleet, where whoever types a name signs in (Node 22 or newer, of the PATH or of PyPI).
    #[arg(long, conflicts_with = "provider")]
    oidc: bool,
    /// Use any free ports instead of the documented ones.
    #[arg(long, env = "FLOTILLA_ANY_PORTS", hide = true)]
    any_ports: bool,
    /// Put fault proxies between the services and what they call.
    #[arg(long, hide = true)]
    fault_proxy: bool,
    /// Skip the demo, even when there is no data yet.
    #[arg(long)]
    no_demo: bool,
    /// Stop the fleet when standard input ends: when the process that started this is gone.
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

/// What the services log and export, and whose pages may call them.
#[derive(Debug, Clone, Default, Args)]
struct TelemetryArgs {
    /// The release or commit, for log lines, metrics, status and dead letters.
    #[arg(long, env = "FLOTILLA_RELEASE")]
    release: Option<String>,
    /// Name the release in responses, in the header flotilla-release.
    #[arg(long, env = "FLOTILLA_RELEASE_HEADER")]
    release_header: Option<bool>,
    /// The share of all traces, 0 to 1, for which spans are exported and successes are logged.
    #[arg(long, env = "FLOTILLA_SAMPLE", value_parser = share)]
    sample: Option<f64>,
    /// What the services log: a level, or target=level pairs separated by commas.
    #[arg(long, env = "FLOTILLA_LOG")]
    log: Option<String>,
    /// The origins whose pages may call the gateway, with commas between; `*` is any.
    #[arg(long, env = "FLOTILLA_CORS_ORIGINS")]
    cors_origins: Option<String>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".to_owned())
}

impl TelemetryArgs {
    /// As variables.
    fn env(&self) -> Vec<(String, String)> {
        let Self { release, release_header, sample, log, cors_origins } = self;
        let all = [
            ("FLOTILLA_RELEASE", release.clone()),
            ("FLOTILLA_RELEASE_HEADER", release_header.map(|shown| shown.to_string())),
            ("FLOTILLA_SAMPLE", sample.map(|share| share.to_string())),
            ("FLOTILLA_LOG", log.clone()),
            ("FLOTILLA_CORS_ORIGINS", cors_origins.clone()),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

#[derive(Debug, Clone, Args)]
pub struct SuperviseArgs {
    #[command(flatten)]
    up: UpArgs,
    /// Remove the folder after the stop.
    #[arg(long)]
    wipe_at_end: bool,
}

/// A program behind a login: see `devstack::login`.
#[derive(Debug, Clone, Args)]
pub struct LoginProxyArgs {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    password_file: PathBuf,
    #[command(flatten)]
    tls: Tls,
    /// Serve here, beside a program that runs already.
    #[arg(long, conflicts_with = "program")]
    listen: Option<SocketAddr>,
    /// Where that program is.
    #[arg(long, requires = "listen", default_value = "127.0.0.1")]
    host: String,
    #[arg(long)]
    inside: bool,
    #[arg(long)]
    namespace: Vec<String>,
    #[arg(last = true)]
    program: Vec<String>,
}

impl LoginProxyArgs {
    pub async fn run(self) -> Result<(), anyhow::Error> {
        let Self { port, password_file: password, tls, listen, host, inside, namespace, program } = self;
        match listen {
            Some(listen) => devstack::login::beside(listen, (&host, port), &password, tls).await,
            None => Proxy { port, password, tls, inside, namespace, program }.run().await.map(drop),
        }
    }
}

fn options(context: &Context, args: &UpArgs) -> Result<Options, anyhow::Error> {
    let program = std::env::current_exe()?;
    let programs = program.parent().context("a program is in a folder")?.to_owned();
    Ok(Options {
        home: context.home.clone(),
        programs,
        gateway_port: args.gateway_port,
        usual_ports: !args.any_ports,
        durable: true,
        tls: args.tls,
        otlp_endpoint: args.otlp_endpoint.clone(),
        observe: args.observe.wanted(args.otlp_endpoint.as_ref())?,
        fault_proxy: args.fault_proxy,
        provider: match &args.provider {
            _ if args.oidc => Some(Provider::beside()?),
            issuer => issuer.clone().map(Provider::Elsewhere),
        },
        infra_only: false,
        env: args.telemetry.env(),
    })
}

fn say_to_terminal() -> Reporter {
    Arc::new(|line| println!("  {line}"))
}

/// Starts the fleet, and lets people sign up: nobody owns its tenants by that.
async fn start(context: &Context, options: &Options) -> Result<Stack, anyhow::Error> {
    let stack = Stack::start(options, say_to_terminal()).await?;
    if let Err(error) = adoption::of_this_machine(context).await {
        println!("  nobody signs up here until `flotilla identity adopt` has run: {error:#}");
    }
    stack.status_file.is_up();
    Ok(stack)
}

/// Waits for Ctrl-C, or for the signal to stop.
pub async fn stop_requested() -> Result<(), anyhow::Error> {
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

pub async fn run(context: &Context, args: &UpArgs) -> Result<(), anyhow::Error> {
    context.only_here("what `run` starts")?;
    println!("Bringing the fleet up in {} (Ctrl-C stops it)", context.home.display());
    let started = Instant::now();
    let options = options(context, args)?;
    // Stopped in the middle of the start: what runs already dies with this process.
    let stack = tokio::select! {
        stack = start(context, &options) => stack?,
        stop = stop_requested() => {
            std::fs::remove_file(context.home.join(STATUS_FILE)).ok();
            println!("\nStopped before it was up.");
            return stop;
        }
    };
    println!("Up after {:.1} s.\n", started.elapsed().as_secs_f64());
    let stopped = async {
        welcome(context, args).await?;
        println!("\nRunning. Ctrl-C stops everything and keeps the data.");
        std::future::pending::<Result<(), anyhow::Error>>().await
    };
    let outcome = tokio::select! {
        outcome = stopped => outcome,
        stop = stop_requested() => stop,
    };
    println!("\nStopping ...");
    let stopping = Instant::now();
    stack.stop().await;
    println!("Stopped after {:.1} s. The data is kept: `make run` goes on with it.", stopping.elapsed().as_secs_f64());
    outcome
}

/// Prints what a newcomer needs once all is up.
async fn welcome(context: &Context, args: &UpArgs) -> Result<(), anyhow::Error> {
    let first = context.home.join(DEMO_DONE);
    if args.provider.is_some() {
        println!("People come from a provider elsewhere: no demo, which signs nobody in there.");
        println!("`bin/flotilla login` signs one in, and POST /v1/tenants signs a tenant up (docs/identity.md).\n");
    } else if !args.no_demo && !first.exists() {
        println!("There is no data yet: running the demo once (`bin/flotilla demo` repeats it).\n");
        // A demo that fails does not take the fleet with it.
        match demo::run(context).await {
            Ok(()) => std::fs::write(&first, b"")?,
            Err(error) => println!("The demo failed: {error:#}"),
        }
        println!();
    }
    let stack_status = context.stack_status()?;
    println!("Addresses");
    for unit in &stack_status.units {
        let url = unit.url.clone().unwrap_or_else(|| format!("{}://{}", context.scheme(), unit.address));
        println!("  {:<18} {url}", unit.name);
    }
    println!("  logs               {}", context.home.join("logs").display());
    if let Ok(prometheus) = stack_status.unit("prometheus").and_then(Unit::login_url) {
        println!("  pages              {prometheus}/consoles/fleet.html");
    }
    println!("\nTry next");
    println!("  bin/flotilla status");
    println!("  bin/flotilla import samples/todo.txt --tenant acme --user ann");
    println!("  bin/flotilla events tail --tenant acme --from-start");
    Ok(())
}

pub async fn up(context: &Context, args: &UpArgs) -> Result<(), anyhow::Error> {
    context.only_here("what `up` starts")?;
    bring_up(context, args).await?;
    welcome(context, args).await
}

/// Starts the supervisor in the background, or waits for the one that is there, until every unit was ready.
pub async fn bring_up(context: &Context, args: &UpArgs) -> Result<(), anyhow::Error> {
    let tell = |text: &str| {
        if !context.json {
            println!("{text}");
        }
    };
    let home = context.open_stack_dir()?;
    args.observe.wanted(args.otlp_endpoint.as_ref())?;
    if context.is_supervised() {
        tell("The fleet is up, or coming up, already; its supervisor restarts what dies.");
        until_up(context, || Ok(())).await?;
        let is_watched = context.stack_status()?.unit("prometheus").is_ok();
        ensure!(is_watched || !args.observe.observe, "it runs without --observe: `flotilla down` first");
    } else {
        let log = std::fs::File::create(home.log("supervisor"))?;
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.arg("--home").arg(&context.home).arg("supervise");
        command.arg("--gateway-port").arg(args.gateway_port.to_string());
        if let Some(endpoint) = &args.otlp_endpoint {
            command.args(["--otlp-endpoint", endpoint]);
        }
        if let Some(provider) = &args.provider {
            command.args(["--provider", provider]);
        }
        if args.oidc {
            command.arg("--oidc");
        }
        if args.tls {
            command.arg("--tls");
        }
        if args.any_ports {
            command.arg("--any-ports");
        }
        command.envs(args.telemetry.env()).envs(args.observe.env());
        if args.until_stdin_ends {
            command.arg("--until-stdin-ends").stdin(Stdio::inherit());
        } else {
            command.stdin(Stdio::null());
        }
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        let mut child = command.spawn()?;
        tell(&format!("Bringing the fleet up in {} ...", context.home.display()));
        let started = Instant::now();
        until_up(context, || match child.try_wait()? {
            Some(status) => {
                let log = home.log("supervisor");
                bail!("the fleet did not come up ({status}):\n{}", process::tail(&log, 20))
            }
            None => Ok(()),
        })
        .await?;
        tell(&format!("Up after {:.1} s.", started.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Waits until every unit was ready once; `still` fails if that cannot happen any more.
async fn until_up(
    context: &Context,
    mut still: impl FnMut() -> Result<(), anyhow::Error>,
) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut was_supervised = false;
    loop {
        tick.tick().await;
        if context.stack_status().is_ok_and(|stack_status| stack_status.up) {
            return Ok(());
        }
        still()?;
        let supervised = context.is_supervised();
        if was_supervised && !supervised {
            bail!("the fleet did not come up: see {}", context.home.join("logs").display());
        }
        was_supervised = supervised;
    }
}

pub async fn down(context: &Context) -> Result<(), anyhow::Error> {
    context.only_here("what `down` stops")?;
    let Ok(stack_status) = context.stack_status() else {
        anyhow::ensure!(!context.is_supervised(), "the fleet is only just starting: try again in a moment");
        println!("No fleet runs in {}.", context.home.display());
        return Ok(());
    };
    println!("Stopping ...");
    let started = Instant::now();
    process::signal(stack_status.supervisor, Signal::SIGTERM)?;
    // The supervisor holds the lock until everything has stopped.
    let lock = std::fs::File::create(context.home.join(LOCK))?;
    tokio::task::spawn_blocking(move || lock.lock()).await??;
    println!("Stopped after {:.1} s; the data is kept.", started.elapsed().as_secs_f64());
    Ok(())
}

pub fn reset(context: &Context, yes: bool) -> Result<(), anyhow::Error> {
    context.only_here("what `reset` removes")?;
    if context.is_supervised() {
        bail!("the fleet is running: `make down` first");
    }
    let home = context.open_stack_dir()?;
    let (key, data) = (home.path("secrets").join(KEY), home.data_of_user("")?);
    let stays =
        Repository::noted(&home).filter(|folder| !folder.starts_with(home.path("")) && !folder.starts_with(data));
    if let Some(folder) = stays.filter(|folder| folder.exists() && key.exists()) {
        let folder = folder.display();
        println!(
            "The backups in {folder} stay. Only {} opens them, and it is removed too: copy it first.",
            key.display()
        );
    }
    if !yes {
        if !std::io::stdin().is_terminal() {
            bail!("this removes all data of {}: say --yes to do it without being asked", context.home.display());
        }
        print!("Remove all data, logs and secrets of {}? [y/N] ", context.home.display());
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            bail!("nothing was removed");
        }
    }
    home.wipe()?;
    println!("Removed.");
    Ok(())
}

/// The background process of `up`, and of tests.
pub async fn supervise(context: &Context, args: &SuperviseArgs) -> Result<(), anyhow::Error> {
    context.only_here("what `supervise` starts")?;
    let stop = async {
        let stdin_ended = async {
            if args.up.until_stdin_ends {
                tokio::io::stdin().read_to_end(&mut Vec::new()).await.ok();
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            stop = stop_requested() => stop,
            () = stdin_ended => Ok(()),
        }
    };
    let mut stop = std::pin::pin!(stop);
    let options = options(context, &args.up)?;
    let stack = tokio::select! {
        stack = start(context, &options) => stack?,
        stopped = &mut stop => {
            std::fs::remove_file(context.home.join(STATUS_FILE)).ok();
            return stopped;
        }
    };
    stop.await?;
    let home = stack.home.clone();
    stack.stop().await;
    if args.wipe_at_end { home.wipe() } else { Ok(()) }
}

/// Postgres and OpenSearch for test runs: one pair for all of them, stopped after the last has ended.
pub async fn test_parts(context: &Context) -> Result<(), anyhow::Error> {
    context.only_here("what `test-parts` starts")?;
    const LINGER: Duration = Duration::from_secs(20);
    let options = Options {
        gateway_port: 0,
        usual_ports: false,
        durable: false,
        infra_only: true,
        ..options(
            context,
            &UpArgs {
                gateway_port: 0,
                tls: false,
                otlp_endpoint: None,
                observe: ObserveArgs::default(),
                any_ports: true,
                fault_proxy: false,
                provider: None,
                oidc: false,
                no_demo: true,
                until_stdin_ends: false,
                telemetry: TelemetryArgs::default(),
            },
        )?
    };
    let stack = Stack::start(&options, say_to_terminal()).await?;
    stack.status_file.is_up();
    let mut roles = serde_json::Map::new();
    for service in fleet::SERVICES.iter().filter(|service| service.database.is_some()) {
        let passwords = devstack::postgres::roles(&stack.home, service.name)?;
        stack.postgres.provision(service.name, &passwords, service.name).await?;
        roles.insert(service.name.to_owned(), serde_json::to_value(passwords)?);
    }
    let opensearch = stack.status_file.read().unit("opensearch")?.login_url()?;
    let answer = serde_json::json!({
        "postgres": stack.postgres.superuser_url("postgres"),
        "roles": roles,
        "opensearch": opensearch,
    });
    let socket = context.home.join("run/test-parts.sock");
    std::fs::remove_file(&socket).ok();
    let listener = UnixListener::bind(&socket)?;
    let tasks = tokio_util::task::TaskTracker::new();
    // Counted here: a task that reports its end has not quite ended.
    let mut guests = 0_usize;
    let (left, mut leaving) = tokio::sync::mpsc::unbounded_channel();
    loop {
        let patience = if guests == 0 { LINGER } else { Duration::from_secs(86_400) };
        tokio::select! {
            guest = listener.accept() => {
                let (mut guest, _) = guest?;
                let (answer, left) = (answer.clone(), left.clone());
                // A guest stays for as long as it keeps the connection, and says what to remove when it has gone.
                guests += 1;
                tasks.spawn(async move {
                    guest.write_all(format!("{answer}\n").as_bytes()).await.ok();
                    let mut said = String::new();
                    guest.read_to_string(&mut said).await.ok();
                    for line in said.lines() {
                        if let Err(error) = remove(&answer, line).await {
                            eprintln!("{line} could not be removed: {error:#}");
                        }
                    }
                    left.send(()).ok();
                });
            }
            Some(()) = leaving.recv() => guests -= 1,
            stop = stop_requested() => { stop?; break }
            () = tokio::time::sleep(patience) => if guests == 0 { break },
        }
    }
    std::fs::remove_file(&socket).ok();
    stack.stop().await;
    Ok(())
}

/// Removes what a test run made: `database NAME` or `index NAME`.
async fn remove(parts: &serde_json::Value, line: &str) -> Result<(), anyhow::Error> {
    use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

    let text = |name: &str| parts[name].as_str().unwrap_or_default();
    match line.split_once(' ') {
        Some(("database", name)) if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
            let mut admin = sqlx::PgConnection::connect(text("postgres")).await?;
            admin.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await?;
        }
        Some(("index", name)) => {
            let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
            http.delete(format!("{}/{name}", text("opensearch"))).send().await?;
        }
        _ => bail!("neither a database nor an index"),
    }
    Ok(())
}
