//! A fleet that speaks TLS: nobody gets in by plain text, and a new certificate, then a new authority, are taken over under
//! load without a failed request.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;
use std::sync::Arc;

use devstack::StackDir;
use devstack::certificates::Authority;
use e2e::Fleet;
use e2e::load::Load;
use e2e::tls::{Before, certificates, shown};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection as _;
use testkit::until;

/// What speaks TLS; the development issuer and the monitoring page of NATS do not. OpenSearch does where the machine allows it a login.
const SERVERS: [(&str, Before); 8] = [
    ("gateway", Before::Nothing),
    ("todo", Before::Nothing),
    ("search-projector", Before::Nothing),
    ("operations", Before::Nothing),
    ("opensearch", Before::Nothing),
    ("redis", Before::Nothing),
    ("nats", Before::Nats),
    ("postgres", Before::Postgres),
];

fn servers(fleet: &Fleet) -> impl Iterator<Item = (&'static str, Before)> {
    let open = fleet.unit("opensearch").creds_file.is_none();
    let no_redis = !fleet.home.join("secrets/redis-url").exists();
    SERVERS.into_iter().filter(move |(name, _)| match *name {
        "opensearch" => !open,
        "redis" => !no_redis,
        _ => true,
    })
}

/// Waits until every server, and every operations port, shows the certificate of the folder.
async fn all_show_it(fleet: &Fleet) {
    let file = |name: &str| fleet.home.join("tls").join(name);
    let (expected, authorities) = (certificates(&std::fs::read(file("tls.crt")).unwrap()).remove(0), file("ca.crt"));
    for (name, before) in servers(fleet) {
        let unit = fleet.unit(name);
        for address in unit.ops.iter().chain([&unit.address]) {
            until(&format!("{name} shows its new certificate at {address}"), || async {
                shown(&authorities, (address, "127.0.0.1"), before).await.unwrap() == expected
            })
            .await;
        }
    }
}

async fn renew(fleet: &Fleet) {
    let answer = fleet.json(&["secrets", "rotate", "certificates"]).await;
    assert_eq!(answer["rotated"], json!(["certificates"]), "{answer}");
    let answer = fleet.json(&["certificates", "renew"]).await;
    assert_eq!(answer["nats"].as_array().unwrap().len(), 1, "{answer}");
    all_show_it(fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_speaks_tls_alone_and_certificates_change_under_load() {
    let fleet = Arc::new(Fleet::start_with(None, &["--tls"]).await);
    all_show_it(&fleet).await;
    plain_text_is_refused(&fleet).await;
    search_is_reached_by_both_versions_of_http(&fleet).await;

    let load = Load::start(&fleet);
    renew(&fleet).await;

    // A new authority: trusted beside the old one by everybody first, then used, then alone.
    let home = StackDir::open(&fleet.home).unwrap();
    let authority = Authority::make().unwrap();
    let trusted = fleet.home.join("tls/ca.crt");
    let both = [std::fs::read_to_string(&trusted).unwrap(), authority.pair.certificate.clone()].concat();
    put(&trusted, &both);
    until_it_trusts_new_ones(&fleet, 1).await;
    home.write_secret("tls-authority.key", &authority.pair.key).unwrap();
    home.write_secret("tls-authority.crt", &authority.pair.certificate).unwrap();
    renew(&fleet).await;
    put(&trusted, &authority.pair.certificate);
    until_it_trusts_new_ones(&fleet, 2).await;
    // Who has connections there makes new ones, and knows the new one alone.
    fleet.kill("nats").await;
    load.goes_on().await;
    let written = load.end().await;

    // Nobody has a connection any more that was made before.
    for unit in ["postgres", "opensearch", "todo", "search-projector"] {
        fleet.kill(unit).await;
    }
    let title = "Caulk the seams";
    let caller = fleet.caller("acme", "ann").await;
    caller.create(json!({"title": title})).await;
    until("it is found", || async {
        let request = caller.request(Method::GET, "/v1/todos:search").query(&[("query", title)]);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer["hits"][0]["title"] == title
    })
    .await;

    let report = fleet.json(&["verify"]).await;
    assert_eq!(report["todos"], Value::from(written + 1), "{report}");
    Arc::into_inner(fleet).unwrap().stop().await;
}

/// Whoever connects meanwhile reads all of it, or all of what was there.
fn put(file: &Path, text: &str) {
    let part = file.with_extension("new");
    std::fs::write(&part, text).unwrap();
    std::fs::rename(part, file).unwrap();
}

/// The index's client says so in the log; all others read the authorities when they connect.
async fn until_it_trusts_new_ones(fleet: &Fleet, times: usize) {
    let log = fleet.home.join("logs/search-projector.log");
    until("the projector trusts the new authorities", || async {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().filter(|line| line.contains("what has changed there is used") && line.contains("ca.crt")).count()
            == times
    })
    .await;
}

/// Whichever a client prefers.
async fn search_is_reached_by_both_versions_of_http(fleet: &Fleet) {
    if fleet.unit("opensearch").creds_file.is_none() {
        eprintln!("SKIPPED: this machine lets us have no network namespace, so the node speaks plain text");
        return;
    }
    let authorities = std::fs::read(fleet.home.join("tls/ca.crt")).unwrap();
    let (login, url) = (fleet.login("opensearch"), fleet.unit("opensearch").url.unwrap());
    let text = |field: &str| login[field].as_str().unwrap().to_owned();
    let client = || {
        let authorities = reqwest::Certificate::from_pem_bundle(&authorities).unwrap();
        reqwest::Client::builder().no_proxy().tls_certs_only(authorities)
    };
    for client in [client().http1_only(), client().http2_prior_knowledge()] {
        let request = client.build().unwrap().get(&url).basic_auth(text("user"), Some(text("password")));
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
}

async fn plain_text_is_refused(fleet: &Fleet) {
    for (name, _) in servers(fleet).filter(|(_, before)| *before == Before::Nothing) {
        let unit = fleet.unit(name);
        for address in unit.ops.iter().chain([&unit.address]) {
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            let answer = http.get(format!("http://{address}/healthz")).send().await;
            assert!(answer.is_err(), "{name} answers in plain text at {address}: {answer:?}");
        }
    }
    // A client that trusts the authorities of this machine alone.
    let credentials = devstack::nats::credentials_file(&StackDir::open(&fleet.home).unwrap(), "todo-admin");
    let options = async_nats::ConnectOptions::new().credentials_file(&credentials).await.unwrap();
    options.connect(format!("nats://{}", fleet.unit("nats").address)).await.unwrap_err();
    let mut url = fleet.login("postgres")["url"].as_str().unwrap().to_owned();
    sqlx::PgConnection::connect(&url).await.unwrap().close().await.unwrap();
    url.truncate(url.find('?').unwrap());
    let refused = sqlx::PgConnection::connect(&format!("{url}?sslmode=disable")).await.unwrap_err().to_string();
    assert!(refused.contains("no encryption"), "{refused}");
}
