//! `flotilla k8s certificates`: an authority of a development cluster's own, and a certificate for each of its servers. It runs in a pod,
//! with the rights of its service account. Elsewhere cert-manager does the same.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use clap::Args;
use devstack::certificates::{Authority, Pair, RENEWED, VALID};
use fleet::SERVICES;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::context::Context;
use crate::outbox::say;

/// The namespace of the manifests.
const NAMESPACE: &str = "flotilla";
/// The secret of the authority, which only these jobs read.
pub const AUTHORITY: &str = "authority";
/// What the jobs of a release, which show no certificate, have the authorities from.
const JOBS: &str = "jobs";
/// The scheduled check.
pub const VERIFY: &str = "verify";
/// The backing services of the overlay for development, with further names of theirs.
const PARTS: [(&str, &[&str]); 4] =
    [("nats", &["*.nats-routes"]), ("opensearch", &[]), ("postgres", &[]), ("redis", &[])];
/// Where a pod has the rights of its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const NAMES: &str = "flotilla/names";
const RENEW: &str = "flotilla/renew";

#[derive(Debug, Clone, Args)]
pub struct CertificatesArgs {
    /// The namespace.
    #[arg(long, env = "FLOTILLA_NAMESPACE", default_value = NAMESPACE)]
    namespace: String,
}

/// The certificates of the base, and the names in each.
pub fn of_base() -> impl Iterator<Item = (&'static str, Vec<String>)> {
    let services = SERVICES.iter().map(|service| {
        let (of_callers, of_operators) = (in_namespace(service.name), in_namespace(&format!("{}-ops", service.name)));
        (service.name, [of_callers, of_operators].concat())
    });
    services
        .chain([JOBS, VERIFY].map(|name| (name, in_namespace(name))))
        .map(|(name, names)| (name, with_loopback(names)))
}

/// The same with those of the overlay for development.
pub fn of_dev() -> impl Iterator<Item = (&'static str, Vec<String>)> {
    of_base().chain(PARTS.map(|(name, more)| {
        let more = more.iter().map(ToString::to_string).collect();
        (name, with_loopback([in_namespace(name), more].concat()))
    }))
}

/// A Service as pods of the namespace say it, and as others do.
fn in_namespace(service: &str) -> Vec<String> {
    vec![service.to_owned(), format!("{service}.{NAMESPACE}.svc")]
}

/// With the name that whoever forwards a port uses.
fn with_loopback(names: Vec<String>) -> Vec<String> {
    [vec!["localhost".to_owned()], names].concat()
}

/// The secret of a certificate.
pub fn secret_name(name: &str) -> String {
    format!("{name}-tls")
}

/// Makes what is missing, has other names, or ends within a month.
pub async fn run(context: &Context, args: &CertificatesArgs) -> Result<(), anyhow::Error> {
    let api = Api::of_this_pod(&args.namespace)?;
    let authority = api.authority().await?;
    let addresses = api.addresses().await?;
    let now: DateTime<Utc> = std::time::SystemTime::now().into();
    let mut made = Vec::new();
    for (name, mut names) in of_dev() {
        let of_services = names.iter().filter_map(|name| addresses.get(name)).flatten().cloned();
        names.extend(of_services.collect::<Vec<_>>());
        let secret = secret_name(name);
        let there = api.call(Method::GET, &format!("secrets/{secret}"), None).await?;
        if there.is_some_and(|there| is_good(&there, &names, &authority, now)) {
            continue;
        }
        let pair = authority.issue(&names)?;
        let annotations = json!({NAMES: names.join(","), RENEW: (now + VALID - RENEWED).to_rfc3339()});
        let data = data(&pair, &authority.pair.certificate);
        let body = manifest(&secret, &annotations, &data);
        let path = format!("secrets/{secret}?fieldManager=flotilla&force=true");
        api.call(Method::PATCH, &path, Some(&body)).await?;
        made.push(name);
    }
    let text = if made.is_empty() { "all are good".to_owned() } else { made.join(", ") };
    say(context, &json!({"made": made}), &format!("Certificates made: {text}."));
    Ok(())
}

fn is_good(secret: &Value, names: &[String], authority: &Authority, now: DateTime<Utc>) -> bool {
    let noted = |name: &str| secret["metadata"]["annotations"][name].as_str().unwrap_or_default();
    let renew = DateTime::parse_from_rfc3339(noted(RENEW)).is_ok_and(|at| at > now);
    renew && noted(NAMES) == names.join(",") && secret["data"]["ca.crt"] == STANDARD.encode(&authority.pair.certificate)
}

fn data(pair: &Pair, authority: &str) -> Value {
    let text = |text: &str| STANDARD.encode(text);
    json!({"tls.crt": text(&pair.certificate), "tls.key": text(&pair.key), "ca.crt": text(authority)})
}

fn manifest(name: &str, annotations: &Value, data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name, "annotations": annotations}, "data": data,
    })
}

/// The API of Kubernetes, as a pod's service account may use it.
struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Api {
    fn of_this_pod(namespace: &str) -> Result<Self, anyhow::Error> {
        let read = |name: &str| {
            let file = format!("{ACCOUNT}/{name}");
            std::fs::read_to_string(&file).with_context(|| format!("reading {file}: this runs in a pod of a cluster"))
        };
        let authority = reqwest::Certificate::from_pem_bundle(read("ca.crt")?.as_bytes())?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).tls_certs_only(authority);
        let base = format!("https://kubernetes.default.svc/api/v1/namespaces/{namespace}");
        Ok(Self { http: http.build()?, base, token: read("token")?.trim().to_owned() })
    }

    /// What the API answers; None where there is no such object, or there is one already that was to be created.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Option<Value>, anyhow::Error> {
        let mut request = self.http.request(method.clone(), format!("{}/{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            let kind = if method == Method::PATCH { "application/apply-patch+yaml" } else { "application/json" };
            request = request.header("content-type", kind).body(body.to_string());
        }
        let response = request.send().await.context("the API of Kubernetes does not answer")?;
        let status = response.status();
        if [(Method::GET, StatusCode::NOT_FOUND), (Method::POST, StatusCode::CONFLICT)]
            .contains(&(method.clone(), status))
        {
            return Ok(None);
        }
        let answer: Result<Value, _> = response.json().await;
        if !status.is_success() {
            let message = answer.ok().and_then(|answer| answer["message"].as_str().map(ToOwned::to_owned));
            bail!("the API of Kubernetes answers {method} {path} with {status}: {}", message.unwrap_or_default());
        }
        answer.with_context(|| format!("reading the API's answer to {method} {path}")).map(Some)
    }

    /// The authority, which is made once.
    async fn authority(&self) -> Result<Authority, anyhow::Error> {
        let path = format!("secrets/{AUTHORITY}");
        if let Some(there) = self.call(Method::GET, &path, None).await? {
            return read(&there);
        }
        let made = Authority::make()?;
        let body = manifest(AUTHORITY, &json!({}), &data(&made.pair, &made.pair.certificate));
        if self.call(Method::POST, "secrets", Some(&body)).await?.is_some() {
            return Ok(made);
        }
        // Another job was faster.
        read(&self.call(Method::GET, &path, None).await?.context("the authority has gone again")?)
    }

    /// The addresses of the services of the namespace that have some, by name.
    async fn addresses(&self) -> Result<BTreeMap<String, Vec<String>>, anyhow::Error> {
        let services = self.call(Method::GET, "services", None).await?.context("there is no such namespace")?;
        let of = |service: &Value| {
            let name = service["metadata"]["name"].as_str()?.to_owned();
            let addresses = service["spec"]["clusterIPs"].as_array()?.iter().filter_map(Value::as_str);
            Some((name, addresses.filter(|address| *address != "None").map(ToOwned::to_owned).collect()))
        };
        Ok(services["items"].as_array().into_iter().flatten().filter_map(of).collect())
    }
}

fn read(secret: &Value) -> Result<Authority, anyhow::Error> {
    let text = |file: &str| -> Result<String, anyhow::Error> {
        let text = secret["data"][file].as_str().with_context(|| format!("the secret {AUTHORITY} has no {file}"))?;
        Ok(String::from_utf8(STANDARD.decode(text)?)?)
    };
    Authority::read(Pair { certificate: text("tls.crt")?, key: text("tls.key")? })
}
