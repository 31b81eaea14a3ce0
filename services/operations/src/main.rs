//! The operations service: `operations serve`, `operations migrate`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use operations::{Config, ConfigArgs, MigrateArgs};

/// Keeps dead letters beside the broker, and replays them as jobs.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM.
    Serve(ConfigArgs),
    /// Brings the database's schema up to date, as its owner.
    Migrate(MigrateArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Serve(args) => match Config::check(&args) {
            Ok(config) => operations::serve(config, &args).await,
            Err(error) => Err(error.into()),
        },
        Command::Migrate(args) => operations::migrate(&args).await.map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("operations: {error:#}");
        ExitCode::FAILURE
    })
}
