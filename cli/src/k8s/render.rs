//! The manifests that follow from the fleet's table: a file for each service, the jobs of a release, and what lists them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use devstack::issuer::{ISSUER, PROVIDER};
use fleet::{SERVICES, Service, Surroundings};
use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::json;

use super::certificates::{AUTHORITY, VERIFY, of_base, of_dev, secret_name};
use super::secrets;
use crate::context::Context;
use crate::outbox::say;

/// The port of every service for callers, where each has an address of its own.
pub const PORT: u16 = 8080;
/// Its port for operations.
pub const OPS_PORT: u16 = 9090;
/// How many servers of NATS keep each event, unless an overlay says otherwise.
const STREAM_REPLICAS: &str = "3";
/// Where callers on this machine reach the gateway, once a port is forwarded.
const EDGE: &str = "https://127.0.0.1:8080";
const NATS: &str = "tls://nats:4222";
/// What Prometheus evaluates, here and in a cluster.
const RULES: &str = include_str!("../../../infra/prometheus/rules.yml");

const TEMPLATES: [(&str, &str); 11] = [
    ("backups.yaml.j2", include_str!("../../../templates/k8s/backups.yaml.j2")),
    ("cert-manager.yaml.j2", include_str!("../../../templates/k8s/cert-manager.yaml.j2")),
    ("certificates.yaml.j2", include_str!("../../../templates/k8s/certificates.yaml.j2")),
    ("databases.yaml.j2", include_str!("../../../templates/k8s/databases.yaml.j2")),
    ("external-secrets.yaml.j2", include_str!("../../../templates/k8s/external-secrets.yaml.j2")),
    ("job.yaml.j2", include_str!("../../../templates/k8s/job.yaml.j2")),
    ("kustomization.yaml.j2", include_str!("../../../templates/k8s/kustomization.yaml.j2")),
    ("monitors.yaml.j2", include_str!("../../../templates/k8s/monitors.yaml.j2")),
    ("release.yaml.j2", include_str!("../../../templates/k8s/release.yaml.j2")),
    ("service.yaml.j2", include_str!("../../../templates/k8s/service.yaml.j2")),
    ("verify.yaml.j2", include_str!("../../../templates/k8s/verify.yaml.j2")),
];

#[derive(Debug, Clone, Args)]
pub struct RenderArgs {
    /// The release: the tag of the images, and part of the jobs' names.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), value_parser = release)]
    release: String,
    /// The folder that has the base, the overlays and the components.
    #[arg(long, default_value = "k8s")]
    out: PathBuf,
}

fn release(text: &str) -> Result<String, &'static str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let fine = bytes.len() <= 40 && bytes.iter().all(|byte| plain(*byte)) && ends(bytes.first()) && ends(bytes.last());
    if fine {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 40 of a-z, 0-9, . and -, with a letter or digit at both ends")
    }
}

pub fn run(context: &Context, args: &RenderArgs) -> Result<(), anyhow::Error> {
    ensure!(
        args.out.join("base/namespace.yaml").exists(),
        "{} does not have the base: say --out, or go to a clone of the repository",
        args.out.display()
    );
    let files = manifests(&args.release)?;
    for (file, text) in &files {
        let path = args.out.join(file);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let text = format!("{} files of release {} are in {}.", files.len(), args.release, args.out.display());
    say(context, &json!({"files": files.keys().collect::<Vec<_>>(), "release": args.release}), &text);
    Ok(())
}

/// Every file, by its path below the folder of the manifests.
fn manifests(release: &str) -> Result<BTreeMap<PathBuf, String>, anyhow::Error> {
    let mut templates = Environment::new();
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    templates.set_keep_trailing_newline(true);
    for (name, text) in TEMPLATES {
        templates.add_template(name, text)?;
    }
    let render = |template: &str, values: minijinja::Value| -> Result<String, anyhow::Error> {
        let text = templates.get_template(template)?.render(values)?;
        Ok(format!("{}\n", text.trim()))
    };
    let base = Path::new("base");
    let mut files = BTreeMap::new();
    for service in SERVICES {
        files.insert(base.join(format!("{}.yaml", service.name)), render("service.yaml.j2", values(service, release))?);
    }
    let migrations: Vec<_> = SERVICES
        .iter()
        .filter(|service| service.database.is_some())
        .map(|service| {
            let (variable, file) = service.owner_secret();
            context! { name => service.name, variable => (variable, format!("/secrets/{file}")) }
        })
        .collect();
    let release_name = release.replace('.', "-");
    let of_release = context! { release, release_name, migrations };
    files.insert(base.join("release.yaml"), render("release.yaml.j2", of_release.clone())?);
    files.insert(base.join("backups.yaml"), render("backups.yaml.j2", of_release.clone())?);
    files.insert("overlays/dev/databases.yaml".into(), render("databases.yaml.j2", of_release)?);
    let secrets: Vec<_> =
        [AUTHORITY.to_owned()].into_iter().chain(of_dev().map(|(name, _)| secret_name(name))).collect();
    let of_dev = context! { release, release_name, secrets, nats => NATS };
    files.insert("overlays/dev/certificates.yaml".into(), render("certificates.yaml.j2", of_dev)?);
    let certificates: Vec<_> = of_base().collect();
    let by_cert_manager = render("cert-manager.yaml.j2", context! { certificates })?;
    files.insert("components/cert-manager/certificates.yaml".into(), by_cert_manager);
    let by_external_secrets = render("external-secrets.yaml.j2", context! { secrets => secrets::of_base() })?;
    files.insert("components/external-secrets/secrets.yaml".into(), by_external_secrets);
    let services: Vec<_> = SERVICES.iter().map(|service| service.name).collect();
    let logins: Vec<_> = fleet::owners().iter().map(|owner| devstack::nats::administration(owner)).collect();
    let asked: Vec<_> = SERVICES.iter().filter(|service| is_verified(service)).map(|service| service.name).collect();
    let of_verify =
        context! { release, services, asked, logins, edge_name => edge(), port => PORT, ops_port => OPS_PORT };
    files.insert(base.join("verify.yaml"), render("verify.yaml.j2", of_verify)?);
    // The template limits it to the fleet.
    ensure!(RULES.contains("expr: up == 0\n"), "infra/prometheus/rules.yml has no `expr: up == 0` any more");
    let watched: Vec<_> = services.iter().copied().chain([VERIFY]).collect();
    let monitors = render("monitors.yaml.j2", context! { watched, rules => RULES })?;
    files.insert("components/monitoring/monitors.yaml".into(), monitors);
    let people = (PROVIDER, Some("file:///keys/people.json"));
    let mut shared = fleet::shared(NATS, (ISSUER, "file:///keys/jwks.json"), people, EDGE);
    shared.push(("FLOTILLA_STREAM_REPLICAS", STREAM_REPLICAS.to_owned()));
    files.insert(
        base.join("kustomization.yaml"),
        render("kustomization.yaml.j2", context! { release, services, shared })?,
    );
    Ok(files)
}

/// The service in front of all others.
fn edge() -> Option<&'static str> {
    SERVICES.iter().find(|service| service.edge).map(|service| service.name)
}

/// Whether the scheduled check asks its processes: what publishes, and what reads.
fn is_verified(service: &Service) -> bool {
    service.produces || service.name == fleet::PROJECTOR
}

/// When it is rolled out: what records what consumers report, consumers, what publishes, the edge (docs/deploying.md).
fn wave(service: &Service) -> &'static str {
    match service {
        Service { name: fleet::OPERATIONS, .. } => "operations",
        Service { edge: true, .. } => "edge",
        Service { produces: true, .. } => "producers",
        _ => "consumers",
    }
}

fn values(service: &Service, release: &str) -> minijinja::Value {
    let around = Surroundings {
        host: Ipv4Addr::UNSPECIFIED.into(),
        ports: &|service| (service.port.map(|_| PORT), OPS_PORT),
        secret: &|file| format!("/secrets/{file}"),
        tls: Some("/tls"),
        upstream: &|service| service.port.map(|_| format!("https://{}:{PORT}", service.name)),
    };
    // The name, the port, and whether it is one of the services.
    let mut reaches: Vec<(&str, u16, bool)> = Vec::new();
    if service.database.is_some() {
        reaches.push(("postgres", 5432, false));
    }
    if service.logs_in() {
        reaches.push(("nats", 4222, false));
    }
    if service.search_engine {
        reaches.push(("opensearch", 9200, false));
    }
    if service.shares_rates {
        reaches.push(("redis", 6379, false));
    }
    reaches.extend(service.calls().map(|called| (called.name, PORT, true)));
    context! {
        release, reaches,
        called_by => service.called_by().map(|caller| caller.name).collect::<Vec<_>>(),
        verified => is_verified(service),
        name => service.name,
        owner => service.owner,
        wave => wave(service),
        port => service.port.map(|_| PORT),
        protocol => if service.edge { "https" } else { "grpc" },
        ops_port => OPS_PORT,
        edge => service.edge,
        variables => service.variables(&around),
        secrets => !service.secrets().is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_what_the_table_says() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../k8s"));
        for (file, text) in manifests(env!("CARGO_PKG_VERSION")).unwrap() {
            let committed = std::fs::read_to_string(root.join(&file)).unwrap_or_default();
            assert!(committed == text, "{} differs: run `bin/flotilla k8s render`", file.display());
        }
        let base = std::fs::read_dir(root.join("base")).unwrap().count();
        assert_eq!(base, SERVICES.len() + 6, "k8s/base has a file of a service that is no more");
    }

    #[test]
    fn a_release_can_be_a_tag_and_part_of_a_name() {
        for fine in ["0.1.0", "a", "2026-11-27.1"] {
            assert!(release(fine).is_ok(), "{fine}");
        }
        for wrong in ["", "-1", "1.", "A", "a_b", "a/b", "0.1.0+1", "01234567890123456789012345678901234567890"] {
            assert!(release(wrong).is_err(), "{wrong}");
        }
    }
}
