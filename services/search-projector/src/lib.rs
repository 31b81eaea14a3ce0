//! The search projector: events in, a full-text read model out, and the search over it.
//!
//! `events` turns events into documents, `store` knows the index, `grpc` answers searches. The index is a copy: what
//! it holds follows from the events alone, and each document carries the version of the todo it shows.

pub mod events;

mod upkeep;

pub mod store;

mod store_mapping;

pub mod store_bulk;

pub mod store_rebuild;

pub mod grpc;

pub mod permissions;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use authz::Verifier;
use clap::Args;
use consumer::Consumer;
use proto::search::search_service_server::SearchServiceServer;
use secrecy::{ExposeSecret as _, SecretString};
use service::config::{Common, CommonArgs, ConfigError, Problems};
use service::ops::{self, Readiness};
use service::page::PageTokens;
use service::telemetry::Telemetry;
use service::{Lifecycle, nats, retry};

/// The service's name, and its durable consumer's.
pub const NAME: &str = fleet::PROJECTOR;

/// The durable consumer that fills an index which is rebuilt.
pub const REBUILDER: &str = fleet::REBUILDER;

/// The alias of an index while it is rebuilt, beside the one behind `alias` that is searched.
#[must_use]
pub fn rebuilt(alias: &str) -> String {
    format!("{alias}-rebuild")
}

/// How the service is told what it needs.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What every service is told.
    #[command(flatten)]
    pub common: CommonArgs,
    /// NATS: nats://host:port, or the servers of a cluster, with commas between.
    #[arg(long, env = "FLOTILLA_NATS_URL")]
    nats_url: Option<String>,
    /// The credentials file of this service's login there.
    #[arg(long, env = "FLOTILLA_NATS_CREDS")]
    nats_creds: Option<PathBuf>,
    /// The key for page tokens, the same for all replicas.
    #[arg(long, env = "FLOTILLA_PAGE_TOKEN_KEY", hide_env_values = true)]
    page_token_key: Option<String>,
    /// A file that holds it.
    #[arg(long, env = "FLOTILLA_PAGE_TOKEN_KEY_FILE")]
    page_token_key_file: Option<PathBuf>,
    /// OpenSearch, with the login that it wants: http://user:password@host:port.
    #[arg(long, env = "FLOTILLA_OPENSEARCH_URL", hide_env_values = true)]
    opensearch_url: Option<String>,
    /// A file that holds it.
    #[arg(long, env = "FLOTILLA_OPENSEARCH_URL_FILE")]
    opensearch_url_file: Option<PathBuf>,
    /// The alias of the index of todos; a test run has its own.
    #[arg(long, env = "FLOTILLA_TODO_INDEX", default_value = "todos")]
    todo_index: String,
    /// How often the index shows what was written, in milliseconds.
    #[arg(long, env = "FLOTILLA_REFRESH_MILLIS", default_value = "500")]
    refresh_millis: String,
}

/// [`ConfigArgs`], checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// What every service is told.
    pub common: Common,
    /// Where NATS is, and this service's credentials there.
    pub nats: nats::Login,
    /// The key for page tokens.
    pub page_token_key: SecretString,
    /// OpenSearch.
    pub opensearch_url: SecretString,
    /// The alias of the index of todos.
    pub todo_index: String,
    /// The index's refresh interval.
    pub refresh: Duration,
}

impl Config {
    /// Checks everything, before any port is bound.
    ///
    /// # Errors
    /// Tells every wrong value.
    pub fn check(args: &ConfigArgs) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let config = Self::parse(args, &mut problems);
        problems.finish(config)
    }

    fn parse(args: &ConfigArgs, problems: &mut Problems) -> Option<Self> {
        let common = args.common.check(problems);
        let nats = problems.nats(args.nats_url.as_deref(), args.nats_creds.as_deref());
        let page_token_key = problems.secret(
            "FLOTILLA_PAGE_TOKEN_KEY",
            args.page_token_key.as_deref(),
            args.page_token_key_file.as_deref(),
        );
        let opensearch_url = problems.secret(
            "FLOTILLA_OPENSEARCH_URL",
            args.opensearch_url.as_deref(),
            args.opensearch_url_file.as_deref(),
        );
        if let Some(url) = &opensearch_url
            && let Err(error) = opensearch::http::Url::parse(url.expose_secret())
        {
            problems.add(format!("FLOTILLA_OPENSEARCH_URL: {error}"));
        }
        let refresh: Option<u64> = problems.parse("FLOTILLA_REFRESH_MILLIS", Some(&args.refresh_millis));
        Some(Self {
            common: common?,
            nats: nats?,
            page_token_key: page_token_key?,
            opensearch_url: opensearch_url?,
            todo_index: args.todo_index.clone(),
            refresh: Duration::from_millis(refresh?),
        })
    }
}

/// Runs the service to its end.
///
/// # Errors
/// Fails when it cannot start.
pub async fn serve(config: Config, args: &CommonArgs) -> Result<ExitCode, anyhow::Error> {
    let telemetry = Telemetry::init(NAME, &args.telemetry)?;
    let lifecycle = Lifecycle::default();
    let readiness = Readiness::default();
    let (release, metrics) = (&config.common.release, Some(telemetry.metrics()));
    ops::serve(&lifecycle, config.common.ops_listen, readiness.clone(), release, metrics).await?;
    let address = build(&config, &lifecycle, &readiness).await?;
    tracing::info!(%address, "serving");
    let code = lifecycle.run_to_end().await;
    telemetry.flush().await;
    Ok(code)
}

/// Starts everything and tells where the gRPC door is; the tests start exactly this.
///
/// # Errors
/// Fails when a port cannot be bound or an address cannot be read. A dependency that is down is waited for.
pub async fn build(config: &Config, lifecycle: &Lifecycle, readiness: &Readiness) -> Result<SocketAddr, anyhow::Error> {
    let index = store::Index::new(config.opensearch_url.expose_secret(), &config.todo_index, config.refresh)?;
    let verifier = Arc::new(Verifier::new(config.common.jwks.clone(), &config.common.issuer, &config.common.audience)?);
    let nats = nats::connect(NAME, &config.nats).await?;
    readiness.set("index", false);
    readiness.set("keys", false);

    let (stop, ready, keys) = (lifecycle.stopping(), readiness.clone(), Arc::clone(&verifier));
    lifecycle.spawn("keys", async move {
        let keys = retry::until_it_works("the issuer's keys", || keys.refresh());
        if stop.run_until_cancelled(keys).await.is_some() {
            ready.set("keys", true);
        }
        stop.cancelled().await;
        Ok::<_, anyhow::Error>(())
    });

    let consumer = Consumer::new(nats.clone(), consumer_config(NAME, &config.common.release));
    let (there, mut is_there) = tokio::sync::watch::channel(false);
    let (whole, is_whole) = tokio::sync::watch::channel(false);
    let (stop, kept, rewinder) = (lifecycle.stopping(), index.clone(), consumer.rewinder());
    let status = consumer.status();
    lifecycle.spawn("index keeper", async move {
        upkeep::keep_index(&kept, &rewinder, &status, &stop, &there, &whole).await;
        Ok::<_, anyhow::Error>(())
    });
    let (stop, ready, projected) = (lifecycle.stopping(), readiness.clone(), index.clone());
    let (sampled, samples) = tokio::sync::watch::channel(None);
    lifecycle.spawn("projector", async move {
        if stop.run_until_cancelled(is_there.wait_for(|there| *there)).await.is_none() {
            return Ok(());
        }
        ready.set("index", true);
        let projector = events::Projector { index: projected.clone(), stop: stop.clone(), sampled: Some(sampled) };
        consumer.run_batches(stop.clone(), |batch| projector.on_batch(batch)).await;
        Ok::<_, anyhow::Error>(())
    });
    let (stop, next, release) =
        (lifecycle.stopping(), index.behind(&rebuilt(&config.todo_index)), config.common.release.clone());
    let rebuilder = move || Consumer::new(nats.clone(), consumer_config(REBUILDER, &release));
    lifecycle.spawn("rebuild", async move {
        events::rebuild(&next, rebuilder, &stop).await;
        Ok::<_, anyhow::Error>(())
    });
    let (stop, visible) = (lifecycle.stopping(), index.clone());
    lifecycle.spawn("lag sampler", async move {
        stop.run_until_cancelled(events::sample_lag(visible, samples)).await;
        stop.cancelled().await;
        Ok::<_, anyhow::Error>(())
    });

    let search = grpc::Search { index, is_whole, pages: PageTokens::new(config.page_token_key.clone()) };
    let service = SearchServiceServer::new(search);
    service::grpc::serve(lifecycle, &config.common, verifier, proto::DESCRIPTORS, service).await
}

fn consumer_config(durable: &str, release: &str) -> consumer::Config {
    fleet::projector(durable, format!("{NAME} {release}"))
}
