//! The gateway: `gateway serve`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway::{Config, ConfigArgs};

/// The fleet's edge: HTTP/JSON in, gRPC to the services, driven by the proto annotations.
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
        Ok(config) => gateway::serve(config, &args.common).await,
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("gateway: {error:#}");
        ExitCode::FAILURE
    })
}
