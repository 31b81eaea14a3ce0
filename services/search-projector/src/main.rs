//! The search projector: `search-projector serve`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use search_projector::{Config, ConfigArgs};

/// Keeps the search index true to the events, and answers searches.
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
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Serve(args) = Args::parse().command;
    let result = match Config::check(&args) {
        Ok(config) => search_projector::serve(config, &args.common).await,
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("search-projector: {error:#}");
        ExitCode::FAILURE
    })
}
