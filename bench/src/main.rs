//! `make bench`: the fleet against the raw limit of the same machine, in the same run. It brings up its own stack
//! from the release build, measures, and removes it. docs/performance.md has the figures and their limits.

#![expect(clippy::disallowed_methods, reason = "a measuring program reads clocks and makes ids")]

mod bare;
mod edge;
mod latency;
mod load;
mod neighbour;
mod peers;
mod process;
mod relay;
mod relays;
mod report;
mod search;
mod stack;
mod tokens;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

/// As in every service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the fleet against the raw limits of this machine. Build with --release, and run nothing else on the machine.
#[derive(Parser)]
struct Args {
    /// How often each ratio is measured; the median counts.
    #[arg(long, default_value = "3", global = true)]
    runs: usize,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Everything, with the short form of the held xmin.
    All,
    /// Relay: drain of a backlog, against a raw pipelined publish.
    Drain(relay::DrainArgs),
    /// Relay: commit to stored at a steady rate.
    Latency(latency::LatencyArgs),
    /// Relay: both with old rows and a held xmin, against without.
    Held(relay::HeldArgs),
    /// Writes through the edge, against pgbench with the same transaction.
    Edge(edge::EdgeArgs),
    /// The same writes with a log line for each request, call and batch, against without.
    Lines(edge::EdgeArgs),
    /// A tenant's reads beside another tenant that writes as fast as it can, with the services' default limits.
    Neighbour(neighbour::NeighbourArgs),
    /// The gateway beside one made with grpc-gateway, before the same todo service.
    Peers(peers::PeersArgs),
    /// Reads by three times as many clients as the edge works on at once.
    Overload(load::OverloadArgs),
    /// Reads beside thousands of connections that are idle.
    Idle(load::IdleArgs),
    /// Many who watch the changes of one tenant.
    Watchers(load::WatchersArgs),
    /// Projector: a backlog of events, against raw bulk requests.
    Projector(search::ProjectorArgs),
    /// From the answer to a write to the search that finds it.
    Searchable(search::SearchableArgs),
    /// What knowing a caller costs: each call, each exchange of a credential, and the tokens in hand.
    Tokens(tokens::TokensArgs),
    /// Memory of each service, idle.
    Memory,
    /// A relay and nothing else, for the other commands.
    #[command(hide = true)]
    Relay(relay::RelayArgs),
    /// A service made of its libraries alone.
    #[command(hide = true)]
    BareTodo(bare::TodoArgs),
    /// A gateway made of its libraries alone.
    #[command(hide = true)]
    BareGateway(bare::GatewayArgs),
}

fn main() -> ExitCode {
    let Args { runs, command } = Args::parse();
    let result = match command.unwrap_or(Command::All) {
        // One relay needs one thread.
        Command::Relay(relay) => in_runtime(&mut Builder::new_current_thread(), relay::run(relay)),
        Command::BareTodo(args) => in_runtime(&mut Builder::new_multi_thread(), bare::todo(args)),
        Command::BareGateway(args) => in_runtime(&mut Builder::new_multi_thread(), bare::gateway(args)),
        command => in_runtime(&mut Builder::new_multi_thread(), run(runs, command)),
    };
    result.map_or_else(
        |error| {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn in_runtime(
    runtime: &mut Builder,
    work: impl Future<Output = Result<(), anyhow::Error>>,
) -> Result<(), anyhow::Error> {
    runtime.enable_all().build()?.block_on(work)
}

async fn run(runs: usize, command: Command) -> Result<(), anyhow::Error> {
    anyhow::ensure!(!cfg!(debug_assertions), "figures of a debug build say nothing: use `make bench`");
    let everything = matches!(command, Command::All);
    if let Command::Lines(args) = &command {
        return edge::lines(runs, args).await;
    }
    on_a_stack(runs, command).await?;
    if everything {
        on_a_stack(runs, Command::Neighbour(neighbour::NeighbourArgs::default())).await?;
        on_a_stack(runs, Command::Peers(peers::PeersArgs::default())).await?;
        on_a_stack(runs, Command::Overload(load::OverloadArgs::default())).await?;
        on_a_stack(runs, Command::Idle(load::IdleArgs::default())).await?;
        on_a_stack(runs, Command::Watchers(load::WatchersArgs::default())).await?;
        edge::lines(runs, &edge::EdgeArgs::default()).await?;
    }
    Ok(())
}

async fn on_a_stack(runs: usize, command: Command) -> Result<(), anyhow::Error> {
    let env = match &command {
        Command::Neighbour(args) => args.env(),
        Command::Overload(args) => args.env(),
        Command::Idle(args) => args.env()?,
        Command::Watchers(args) => args.env()?,
        _ => stack::allowed(1_000_000, 1_000),
    };
    let bench = stack::Bench::start(runs, env).await?;
    let result = tokio::select! {
        result = measure(&bench, command) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    bench.stop().await;
    result
}

async fn measure(bench: &stack::Bench, command: Command) -> Result<(), anyhow::Error> {
    match command {
        Command::All => {
            search::memory(bench).await?;
            relay::drain(bench, &relay::DrainArgs::default()).await?;
            latency::run(bench, &latency::LatencyArgs::default()).await?;
            relay::held(bench, &relay::HeldArgs::default()).await?;
            edge::run(bench, &edge::EdgeArgs::default()).await?;
            tokens::run(bench, &tokens::TokensArgs::default()).await?;
            search::projector(bench, &search::ProjectorArgs::default()).await?;
            search::searchable(bench, &search::SearchableArgs::default()).await
        }
        Command::Drain(args) => relay::drain(bench, &args).await,
        Command::Latency(args) => latency::run(bench, &args).await,
        Command::Held(args) => relay::held(bench, &args).await,
        Command::Edge(args) => edge::run(bench, &args).await,
        Command::Neighbour(args) => neighbour::run(bench, &args).await,
        Command::Peers(args) => peers::run(bench, &args).await,
        Command::Overload(args) => load::overload(bench, &args).await,
        Command::Idle(args) => load::idle(bench, &args).await,
        Command::Watchers(args) => load::watchers(bench, &args).await,
        Command::Tokens(args) => tokens::run(bench, &args).await,
        Command::Projector(args) => search::projector(bench, &args).await,
        Command::Searchable(args) => search::searchable(bench, &args).await,
        Command::Memory => search::memory(bench).await,
        Command::Lines(_) | Command::Relay(_) | Command::BareTodo(_) | Command::BareGateway(_) => Ok(()),
    }
}
