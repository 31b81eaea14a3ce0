//! The todo service: `todo serve`, `todo migrate`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use todo::{Config, ConfigArgs, MigrateArgs};

/// Todos of all tenants: writes them, and publishes what happened to them.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM.
    Serve(Box<ConfigArgs>),
    /// Brings the database's schema up to date, as its owner.
    Migrate(MigrateArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Serve(args) => match Config::check(&args) {
            Ok(config) => todo::serve(config, &args.common).await,
            Err(error) => Err(error.into()),
        },
        Command::Migrate(args) => todo::migrate(&args).await.map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("todo: {error:#}");
        ExitCode::FAILURE
    })
}
