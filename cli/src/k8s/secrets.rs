//! The secrets of a development fleet in Kubernetes, from the folder that keeps them. Keys of NATS' accounts and of the issuer stay in the
//! folder: the cluster gets logins, signed accounts and the public key set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use authz::OperatorRole;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeDelta;
use clap::Args;
use devstack::backup::{Key, Paths};
use devstack::issuer::{Issuer, write_service_keys};
use devstack::nats::{self, administration};
use devstack::postgres::{self, Place, ROLES, SUPERUSER};
use devstack::{StackDir, login, redis, stack};
use fleet::SERVICES;
use serde_json::{Value, json};

use super::certificates::VERIFY;
use crate::context::Context;

#[derive(Debug, Clone, Args)]
pub struct SecretsArgs {
    /// The namespace.
    #[arg(long, default_value = "flotilla")]
    namespace: String,
    /// Where PostgreSQL is.
    #[arg(long, default_value = "postgres:5432", value_name = "HOST:PORT")]
    postgres: String,
    /// Where pods find the authorities of the certificates.
    #[arg(long, default_value = "/tls/ca.crt", value_name = "FILE")]
    authorities: PathBuf,
    /// Where OpenSearch is.
    #[arg(long, default_value = "opensearch:9200", value_name = "HOST:PORT")]
    opensearch: String,
    /// Where Redis is.
    #[arg(long, default_value = "redis:6379", value_name = "HOST:PORT")]
    redis: String,
}

/// The secrets that the base asks for, and their files.
pub fn of_base() -> Vec<(String, Vec<String>)> {
    let others = [(BACKUPS, BACKUP_KEY), (VERIFY, OPERATOR_TOKEN)];
    of_programs().chain(others.map(|(name, file)| (name.to_owned(), vec![file.to_owned()]))).collect()
}

/// Those of services, of their migrations, and of what makes accounts, streams and consumers.
pub fn of_programs() -> impl Iterator<Item = (String, Vec<String>)> {
    let of_services = SERVICES.iter().map(|service| {
        let files = service.secrets().into_iter().map(|(_, file)| file);
        (service.name.to_owned(), files.collect::<Vec<_>>())
    });
    let of_owners = SERVICES.iter().filter(|service| service.database.is_some());
    let of_owners = of_owners.map(|service| (owner_of(service), vec![service.owner_secret().1]));
    let administrates = administration_logins().map(|login| format!("{login}.creds"));
    let administrates = [ACCOUNTS.to_owned()].into_iter().chain(administrates).collect();
    let all = of_services.chain(of_owners).chain([(ADMINISTRATION.to_owned(), administrates)]);
    all.filter(|(_, files)| !files.is_empty())
}

/// The secret of the jobs that make accounts, streams and consumers.
pub const ADMINISTRATION: &str = "nats-administration";
/// Its file with the signed accounts.
const ACCOUNTS: &str = "accounts";
/// The secret of the jobs that make backups, and its key.
const BACKUPS: &str = "backups";
const BACKUP_KEY: &str = "backup-key";
/// The file with the token by which the scheduled check asks the fleet's processes, in a secret of its own.
const OPERATOR_TOKEN: &str = "operator-token";
/// How long that of a development fleet is valid, within the day that services admit: it gets another with each release and rotation.
const TOKEN_LIVES: TimeDelta = TimeDelta::hours(23);
/// The file of the issuer's public keys, and that of the people's provider.
pub const KEYS: &str = "jwks.json";
const PEOPLE: &str = "people.json";

/// The secret of a service's migration.
fn owner_of(service: &fleet::Service) -> String {
    format!("{}-owner", service.name)
}

/// The logins of the administration of NATS.
fn administration_logins() -> impl Iterator<Item = String> {
    fleet::owners().into_iter().map(|owner| administration(&owner)).chain(["sys".to_owned()])
}

/// The files of a secret, by name.
pub type Files = BTreeMap<String, String>;

pub async fn run(context: &Context, args: &SecretsArgs) -> Result<(), anyhow::Error> {
    let place = Place { host: args.postgres.clone(), authorities: Some(args.authorities.clone()) };
    let home = open(context)?;
    let Made { mut secrets, keys } = make(&home, &place, (&args.opensearch, &args.redis))?;
    let key = Key::make(&home).await.context("the key of the backups (apt-get install age)")?;
    let [repository, lock, data] = ["/backups/postgres", "/tmp/pgbackrest", "/data/postgres"].map(Path::new);
    let configuration = key.configuration(&Paths { repository, lock, data }, 5432);
    let backups = [(BACKUP_KEY.to_owned(), key.text()), ("pgbackrest.conf".to_owned(), configuration)];
    secrets.insert(BACKUPS.to_owned(), Files::from(backups));
    let token = Issuer::open(&home)?.operator_token(VERIFY, OperatorRole::Operator, TOKEN_LIVES)?;
    secrets.insert(VERIFY.to_owned(), Files::from([(OPERATOR_TOKEN.to_owned(), token)]));
    let namespace = args.namespace.as_str();
    let mut items: Vec<Value> = secrets.iter().map(|(name, files)| {
        let data: BTreeMap<_, _> = files.iter().map(|(file, text)| (file, STANDARD.encode(text))).collect();
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": data})
    }).collect();
    items.push(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keys", "namespace": namespace}, "data": keys,
    }));
    println!("{}", json!({"apiVersion": "v1", "kind": "List", "items": items}));
    Ok(())
}

/// The folder that keeps the secrets of a fleet in containers.
pub fn open(context: &Context) -> Result<StackDir, anyhow::Error> {
    context.only_here("the folder that keeps the secrets")?;
    // The services of a stack read the same files, with other addresses in them.
    ensure!(!context.is_supervised(), "a stack runs in {}: say another folder by --home", context.home.display());
    context.open_stack_dir()
}

/// What a fleet in containers gets from its folder.
pub struct Made {
    /// The secrets, by name; each has a file at least.
    pub secrets: BTreeMap<String, Files>,
    /// The public keys of the issuer, and those of the people's provider.
    pub keys: Files,
}

/// Every secret of a fleet whose PostgreSQL, OpenSearch and Redis are at these places; the others speak TLS where PostgreSQL does.
pub fn make(home: &StackDir, place: &Place, (opensearch, at_redis): (&str, &str)) -> Result<Made, anyhow::Error> {
    let accounts = nats::make_accounts(home, &[])?;
    let scheme = if place.authorities.is_some() { "https" } else { "http" };
    let password = home.secret(login::PASSWORDS)?;
    home.write_secret("opensearch-url", &format!("{scheme}://{}:{password}@{opensearch}", login::USER))?;
    home.write_secret(redis::URL, &redis::url(home, at_redis, place.authorities.is_some())?)?;
    let superuser = home.secret("postgres-password")?;
    let mut databases = Files::from([
        ("superuser-password".to_owned(), superuser.clone()),
        ("superuser-database-url".to_owned(), place.url(SUPERUSER, &superuser, "postgres")),
    ]);
    let mut secrets: BTreeMap<String, Files> = BTreeMap::new();
    // Made before a service asks for its key.
    Issuer::open(home)?;
    write_service_keys(home)?;
    for service in SERVICES {
        if service.database.is_some() {
            postgres::write_urls(home, service, place)?;
            for role in ROLES {
                let file = postgres::password_file(service.name, role);
                // The server takes one.
                databases.insert(file.clone(), home.present(&file)?);
            }
            let (_, file) = service.owner_secret();
            secrets.insert(owner_of(service), Files::from([(file.clone(), read(home, &file)?)]));
        }
        if let Some(file) = service.page_token_key {
            home.secret(file)?;
        }
        let files = service.secrets().into_iter().map(|(_, file)| Ok((file.clone(), read(home, &file)?)));
        secrets.insert(service.name.to_owned(), files.collect::<Result<_, anyhow::Error>>()?);
    }
    let operator = accounts.operator_mode(Path::new("/data/accounts"));
    let mut administrates = Files::from([(ACCOUNTS.to_owned(), accounts.jwts().join("\n"))]);
    for login in administration_logins() {
        let file = format!("{login}.creds");
        administrates.insert(file.clone(), read(home, &file)?);
    }
    secrets.insert("databases".to_owned(), databases);
    secrets.insert("nats".to_owned(), Files::from([("operator.conf".to_owned(), operator)]));
    secrets.insert(ADMINISTRATION.to_owned(), administrates);
    let passwords = read(home, login::PASSWORDS)?;
    secrets.insert("opensearch".to_owned(), Files::from([(login::PASSWORDS.to_owned(), passwords)]));
    secrets.insert("redis".to_owned(), Files::from([("users.acl".to_owned(), redis::users(home)?)]));
    let administration = redis::administration_url(home, at_redis, place.authorities.is_some())?;
    let administration = Files::from([(redis::ADMINISTRATION_URL.to_owned(), administration)]);
    secrets.insert("redis-administration".to_owned(), administration);
    secrets.retain(|_, files| !files.is_empty());
    let public = |issuer: Issuer| serde_json::to_string(issuer.jwks());
    let keys = Files::from([
        (KEYS.to_owned(), public(Issuer::open(home)?)?),
        (PEOPLE.to_owned(), public(Issuer::of_people(home)?)?),
    ]);
    home.write_secret(KEYS, &keys[KEYS])?;
    Ok(Made { secrets, keys })
}

fn read(home: &StackDir, file: &str) -> Result<String, anyhow::Error> {
    let path = stack::secret_file(home, file);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_secret_that_the_base_mounts_is_in_the_list() {
        let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../k8s/base");
        let mut mounted = BTreeSet::new();
        for file in std::fs::read_dir(base).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let names = text.split("secretName: ").skip(1).filter_map(|rest| rest.split([',', '}', '\n']).next());
            // Certificates come another way.
            mounted.extend(names.filter(|name| !name.ends_with("-tls")).map(ToOwned::to_owned));
        }
        let listed: BTreeSet<_> = of_base().into_iter().map(|(name, _)| name).collect();
        assert_eq!(listed, mounted);
    }
}
