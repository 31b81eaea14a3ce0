//! `flotilla`: one command for operators and newcomers.

// First: its macros take the place of std's.
#[macro_use]
mod terminal;

mod api;
mod audit;
mod consumers;
mod data;
mod demo;
mod dlq;
mod events;
mod exit;
mod import;
mod lag;
mod nats_credentials;
mod new;
mod operator;
mod outbox;
mod processes;
mod rebuild;
mod replay;
mod stack;
mod status;
mod table;
mod trace;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs a fleet on this machine, looks at it, and works with it.
///
/// Every command works on the stack of one folder: `.flotilla` in the current one, or FLOTILLA_HOME.
/// Exit codes: 0 done, 1 it failed (the message says why), 2 the command line is wrong, 3 a job or an import ended
/// without having everything handled, 4 `verify` found something, 5 it found nothing but could not check everything.
#[derive(Parser)]
#[command(name = "flotilla", version)]
struct Args {
    /// The stack's folder: data, logs, secrets.
    #[arg(long, env = "FLOTILLA_HOME", default_value = ".flotilla", global = true)]
    home: PathBuf,
    /// Print JSON, for machines.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    operator: operator::Token,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the fleet up in the foreground; Ctrl-C stops it and keeps the data. `make run` is this.
    Run(stack::UpArgs),
    /// Bring the fleet up in the background, or start what is missing.
    Up(stack::UpArgs),
    /// Stop the fleet; the data stays.
    Down,
    /// Remove the stopped fleet's data, logs and secrets.
    Reset {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// What is up, how far behind each stage and consumer is, what died, and what is degraded and why.
    Status(status::StatusArgs),
    /// Mint an access token from the development issuer; for an operator with --operator.
    Token(api::TokenArgs),
    /// Show the whole way: write, events, search, another tenant, and where the time goes.
    Demo,
    /// Write the todos of a todo.txt or CSV file through the public API.
    Import(import::ImportArgs),
    /// The fleet's events.
    Events {
        #[command(subcommand)]
        command: events::EventsCommand,
    },
    /// How long each stage takes, from commit to searchable, and what waits.
    Lag,
    /// The log lines of one trace, of all services, in the order of time.
    Trace(trace::TraceArgs),
    /// The outbox of a service and its relay: parked rows, the journal, a stream that is ahead.
    Outbox(outbox::OutboxArgs),
    /// Dead letters: looked at, mended, replayed as jobs, discarded; with an audit of who did what.
    Dlq(Box<dlq::DlqArgs>),
    /// Give one consumer a range of a stream again, as a job.
    Replay(Box<replay::ReplayArgs>),
    /// Build a read model anew while it is used, and swap it in.
    Rebuild(rebuild::RebuildArgs),
    /// Compare outbox, stream and read model: lost, duplicated, out of order, foreign, diverged.
    Verify(verify::VerifyArgs),
    /// What the services hold of a tenant, or of one person of it: export it, erase it.
    Data(data::DataArgs),
    /// The durable consumers: how they are, pause and resume.
    Consumers(consumers::ConsumersArgs),
    /// Make the NATS accounts, streams and durable consumers that this release needs, before its services start; mend what differs and may be changed.
    Provision(nats_credentials::ProvisionArgs),
    /// Credentials by which programs read one tenant's events from NATS.
    NatsCredentials {
        #[command(subcommand)]
        command: nats_credentials::CredentialsCommand,
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
    let args = Args::parse();
    let context = stack::Context { home: args.home, json: args.json, operator: args.operator };
    let result = match args.command {
        Command::Run(up) => stack::run(&context, &up).await,
        Command::Up(up) => stack::up(&context, &up).await,
        Command::Down => stack::down(&context).await,
        Command::Reset { yes } => stack::reset(&context, yes),
        Command::Status(args) => status::run(&context, &args).await,
        Command::Token(who) => api::print_token(&context, &who),
        Command::Demo => demo::run(&context).await,
        Command::Import(import) => import::run(&context, &import).await,
        Command::Events { command } => events::run(&context, &command).await,
        Command::Lag => lag::run(&context).await,
        Command::Trace(args) => trace::run(&context, &args),
        Command::Outbox(args) => outbox::run(&context, &args).await,
        Command::New { command } => new::run(&command),
        Command::Data(args) => data::run(&context, &args).await,
        Command::Dlq(args) => dlq::run(&context, &args).await,
        Command::Replay(args) => replay::run(&context, &args).await,
        Command::Rebuild(args) => rebuild::run(&context, &args).await,
        Command::Verify(args) => verify::run(&context, &args).await,
        Command::Consumers(args) => consumers::run(&context, &args).await,
        Command::Provision(args) => nats_credentials::provide(&context, &args).await,
        Command::NatsCredentials { command } => Box::pin(nats_credentials::run(&context, &command)).await,
        Command::Supervise(args) => stack::supervise(&context, &args).await,
        Command::TestParts => stack::test_parts(&context).await,
        Command::LoginProxy(args) => args.proxy().run().await.map(|_| ()),
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
