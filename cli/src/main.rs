//! `flotilla`: one command for operators and newcomers.

// First: its macros replace std's.
#[macro_use]
mod terminal;

mod adoption;
mod api;
mod audit;
mod backup;
mod bundle;
mod certificates;
mod compose;
mod consumers;
mod context;
mod data;
mod databases;
mod demo;
mod dlq;
mod events;
mod exit;
mod identity;
mod import;
mod k8s;
mod lag;
mod login;
mod manual;
mod nats_credentials;
mod new;
mod observe;
mod operator;
mod outbox;
mod processes;
mod profile;
mod profiles;
mod rebuild;
mod replay;
mod restore;
mod scheduled;
mod secrets;
mod stack;
mod status;
mod table;
mod trace;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// Runs a fleet on this machine; inspects and operates it here and elsewhere.
///
/// Every command uses the stack of one folder: `.flotilla` in the current one, or FLOTILLA_HOME; or, with --profile, a
/// fleet that is elsewhere.
/// Exit codes: 0 done, 1 failed (the message says why), 2 the command line is wrong, 3 a job or an import ended
/// with something unhandled, 4 `verify` found something, 5 `verify` found nothing but could not check everything.
#[derive(Parser)]
#[command(name = "flotilla", version)]
struct Args {
    /// The stack's folder: data, logs, secrets.
    #[arg(long, env = "FLOTILLA_HOME", default_value = ".flotilla", global = true)]
    home: PathBuf,
    /// The fleet of this profile (`flotilla profile add`); `local` is that of the folder.
    #[arg(long, env = "FLOTILLA_PROFILE", global = true)]
    profile: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    operator: context::Token,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the fleet up in the foreground; Ctrl-C stops it and keeps the data. `make run` runs this.
    Run(stack::UpArgs),
    /// Bring the fleet up in the background, or start what is missing.
    Up(stack::UpArgs),
    /// Stop the fleet and keep the data.
    Down,
    /// Remove the stopped fleet's data, logs and secrets.
    Reset {
        /// Skip the confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Back up the stores of the running fleet into a folder, encrypted; from then on the log of PostgreSQL is archived there.
    Backup(backup::BackupArgs),
    /// List the backups, the moments that they lead to, and the secrets that they do not hold.
    Backups(backup::BackupsArgs),
    /// Bring the stopped fleet back to a moment: PostgreSQL from its backup and log, the streams and the index to the same time,
    /// then check.
    Restore(Box<restore::RestoreArgs>),
    /// Show what is up, the lag of each stage and consumer, dead letters, and what is degraded and why.
    Status(status::StatusArgs),
    /// Mint an access token from the development issuer; for an operator with --operator.
    Token(api::TokenArgs),
    /// Sign a person in at the OpenID provider, and print the token.
    Login(login::LoginArgs),
    /// Show the whole path: write, events, search, another tenant, and where the time goes.
    Demo,
    /// Write the todos of a todo.txt or CSV file through the public API.
    Import(import::ImportArgs),
    /// Read the fleet's events.
    Events {
        #[command(subcommand)]
        command: events::EventsCommand,
    },
    /// Show how long each stage takes, from commit to searchable, and what waits.
    Lag,
    /// Gather what a supporter needs in one file: status, metrics, the end of each log; known secrets are replaced.
    Bundle(bundle::BundleArgs),
    /// Print the log lines of one trace from all services, in time order.
    Trace(trace::TraceArgs),
    /// Inspect and repair a service's outbox and relay: parked rows, the journal, a stream that is ahead.
    Outbox(outbox::OutboxArgs),
    /// Inspect, edit, discard dead letters or replay them as jobs; with an audit of who did what.
    Dlq(Box<dlq::DlqArgs>),
    /// Send one consumer a range of a stream again, as a job.
    Replay(Box<replay::ReplayArgs>),
    /// Rebuild a read model while the old one is in use, and swap it in.
    Rebuild(rebuild::RebuildArgs),
    /// Compare outbox, stream and read model: lost, duplicated, out of order, foreign, diverged.
    Verify(scheduled::VerifyCommand),
    /// Show the tenants and their open invitations; suspend a tenant, or resume it; adopt those of before.
    Identity(identity::IdentityArgs),
    /// Export or erase what the services hold about a tenant, or about one person in it.
    Data(data::DataArgs),
    /// Show, pause and resume the durable consumers.
    Consumers(consumers::ConsumersArgs),
    /// Create the NATS accounts, streams and durable consumers that this release needs, before its services start; correct what differs and may be changed.
    Provision(nats_credentials::ProvisionArgs),
    /// Create the roles and the database of each service on a PostgreSQL that is there; their passwords are in the folder's secrets.
    Databases(databases::DatabasesArgs),
    /// Write the fleet's containers, and their secrets, for a machine with a container engine (infra/compose.yaml).
    Compose {
        #[command(subcommand)]
        command: compose::ComposeCommand,
    },
    /// Write the manifests and the secrets of the fleet for Kubernetes.
    K8s {
        #[command(subcommand)]
        command: k8s::K8sCommand,
    },
    /// Rotate passwords, keys and credentials without a restart.
    Secrets {
        #[command(subcommand)]
        command: secrets::SecretsCommand,
    },
    /// Renew certificates without a restart.
    Certificates {
        #[command(subcommand)]
        command: certificates::CertificatesCommand,
    },
    /// Manage the credentials with which programs read one tenant's events from NATS.
    NatsCredentials {
        #[command(subcommand)]
        command: nats_credentials::CredentialsCommand,
    },
    /// Say where a fleet is that does not run in a folder of this machine.
    Profile {
        #[command(subcommand)]
        command: profiles::ProfileCommand,
    },
    /// Print what completes the command line in a shell: bash, zsh, fish and others. `flotilla completion bash --help` says where to put it.
    Completion {
        /// The shell. Of bash: `flotilla completion bash >~/.local/share/bash-completion/completions/flotilla`; of zsh: into a file `_flotilla` in a folder of
        /// `$fpath`; of fish: `flotilla completion fish >~/.config/fish/completions/flotilla.fish`.
        shell: clap_complete::Shell,
    },
    /// Write the manual: a page for each command (`man ./flotilla.1`).
    Manual {
        /// The folder, which is made.
        #[arg(default_value = "man/man1")]
        out: PathBuf,
    },
    /// Write something new into a clone of the repository.
    New {
        #[command(subcommand)]
        command: new::NewCommand,
    },
    #[command(hide = true)]
    Supervise(stack::SuperviseArgs),
    #[command(hide = true)]
    TestParts,
    #[command(hide = true)]
    LoginProxy(stack::LoginProxyArgs),
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("flotilla: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    // A thread that reads standard input would be waited for until that ends.
    runtime.shutdown_background();
    code
}

async fn run() -> ExitCode {
    let matches = Args::command().get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let said = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    if said("home") && said("profile") {
        let both = "--home is one fleet, --profile another: say one of them";
        Args::command().error(clap::error::ErrorKind::ArgumentConflict, both).exit();
    }
    // What is about no fleet works whatever profile is set; and what was said now counts more than a variable.
    let of_no_fleet = match &args.command {
        Command::Profile { .. }
        | Command::New { .. }
        | Command::Completion { .. }
        | Command::Manual { .. }
        | Command::LoginProxy(_) => true,
        Command::K8s { command } => command.is_of_no_fleet(),
        Command::Compose { command } => command.is_of_no_fleet(),
        _ => false,
    };
    let profile = args.profile.filter(|_| !of_no_fleet && !said("home"));
    let result = match context::Context::new(args.home, args.json, args.operator, profile) {
        Ok(context) => Box::pin(dispatch(&context, args.command)).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let exit = error.downcast_ref::<exit::Exit>();
            if exit.is_none_or(|exit| !exit.to_string().is_empty()) {
                eprintln!("flotilla: {error:#}");
            }
            exit.map_or(ExitCode::FAILURE, |exit| ExitCode::from(exit.code))
        }
    }
}

async fn dispatch(context: &context::Context, command: Command) -> Result<(), anyhow::Error> {
    match command {
        Command::Run(up) => stack::run(context, &up).await,
        Command::Up(up) => stack::up(context, &up).await,
        Command::Down => stack::down(context).await,
        Command::Reset { yes } => stack::reset(context, yes),
        Command::Backup(args) => Box::pin(backup::run(context, &args)).await,
        Command::Backups(args) => backup::list(context, &args).await,
        Command::Restore(args) => Box::pin(restore::run(context, &args)).await,
        Command::Status(args) => status::run(context, &args).await,
        Command::Token(who) => api::print_token(context, &who).await,
        Command::Login(args) => login::run(context, &args).await,
        Command::Demo => demo::run(context).await,
        Command::Import(import) => import::run(context, &import).await,
        Command::Events { command } => events::run(context, &command).await,
        Command::Lag => lag::run(context).await,
        Command::Bundle(args) => bundle::run(context, &args).await,
        Command::Trace(args) => trace::run(context, &args),
        Command::Outbox(args) => outbox::run(context, &args).await,
        Command::Profile { command } => profiles::run(context, &command),
        Command::New { command } => new::run(&command),
        Command::Completion { shell } => manual::completion(Args::command(), shell),
        Command::Manual { out } => manual::write(context, Args::command(), &out),
        Command::Identity(args) => identity::run(context, &args).await,
        Command::Data(args) => data::run(context, &args).await,
        Command::Dlq(args) => dlq::run(context, &args).await,
        Command::Replay(args) => replay::run(context, &args).await,
        Command::Rebuild(args) => rebuild::run(context, &args).await,
        Command::Verify(args) => scheduled::run(context, &args).await,
        Command::Consumers(args) => consumers::run(context, &args).await,
        Command::Provision(args) => nats_credentials::provide(context, &args).await,
        Command::Databases(args) => Box::pin(databases::run(context, &args)).await,
        Command::K8s { command } => Box::pin(k8s::run(context, &command)).await,
        Command::Compose { command } => compose::run(context, &command),
        Command::Secrets { command } => Box::pin(secrets::run(context, &command)).await,
        Command::Certificates { command } => Box::pin(certificates::run(context, &command)).await,
        Command::NatsCredentials { command } => Box::pin(nats_credentials::run(context, &command)).await,
        Command::Supervise(args) => stack::supervise(context, &args).await,
        Command::TestParts => stack::test_parts(context).await,
        Command::LoginProxy(args) => args.run().await,
    }
}
