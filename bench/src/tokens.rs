//! What knowing a caller costs: for each call, for each exchange of a credential, and in memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use authz::exchange::{ACCESS_TOKEN, API_KEY, JWT, TOKEN_EXCHANGE};
use authz::{JwksSource, OperatorRole, Permission, Role, SigningKeys, Verifier, assertion};
use chrono::TimeDelta;
use clap::Args;
use devstack::issuer::{AUDIENCE, ISSUER, Issuer};
use futures::future::try_join_all;
use proto::identity::ExchangeTokenRequest;
use proto::identity::identity_service_client::IdentityServiceClient;
use proto::ops::FinishAdoptionRequest;
use proto::ops::tenant_service_client::TenantServiceClient;
use serde_json::{Value, json};
use service::Process;
use service::revocations::Revocations;
use tonic::Request;
use tonic::transport::Channel;

use crate::edge::Writer;
use crate::process::resident;
use crate::report::{figure, heading, median, quantile};
use crate::stack::Bench;

#[derive(Args)]
pub struct TokensArgs {
    /// How many clients exchange at once.
    #[arg(long, default_value = "16")]
    clients: usize,
    /// For how many seconds, and how long each pair of reads and writes goes on.
    #[arg(long, default_value = "5")]
    seconds: u64,
}

impl Default for TokensArgs {
    fn default() -> Self {
        Self { clients: 16, seconds: 5 }
    }
}

/// How many tokens the gateway caches.
const CACHED: usize = 10_000;
/// How many times the pieces are measured at once: one alone is below what a clock shows.
const BATCH: u32 = 1_000;
/// As todo's row for a write.
const WRITE: Permission = Permission {
    action: "todo.create",
    scope: "todo:write",
    roles: &[Role::Owner, Role::Admin, Role::Member],
    services: &[],
};

/// Somebody with every credential that there is.
struct Known {
    /// The provider's.
    person: String,
    key: String,
    /// The fleet's.
    token: String,
}

pub async fn run(bench: &Bench, args: &TokensArgs) -> Result<(), anyhow::Error> {
    let known = sign_up(bench).await?;
    heading("What knowing a caller adds to a call, with warm caches");
    pieces(bench, &known).await?;
    by_turns(bench, args, &known).await?;
    heading(&format!("Exchanges at identity, {} clients on one connection", args.clients));
    exchanges(bench, args, &known).await?;
    heading(&format!("Memory with {CACHED} tokens in the gateway's hand"));
    in_hand(bench, args).await
}

fn person(bench: &Bench, number: usize) -> Result<String, anyhow::Error> {
    let claims = json!({"email": "bench@x.example", "email_verified": true, "jti": format!("bench-{number}")});
    Issuer::of_people(&bench.stack.home)?.person_token("bench", &claims, TimeDelta::minutes(60))
}

async fn sign_up(bench: &Bench) -> Result<Known, anyhow::Error> {
    let operator =
        Issuer::open(&bench.stack.home)?.operator_token("bench", OperatorRole::Operator, TimeDelta::minutes(5))?;
    let mut finish = Request::new(FinishAdoptionRequest { reason: "there are none".to_owned() });
    finish.metadata_mut().insert("authorization", format!("Bearer {operator}").parse()?);
    let ops = bench.ops("identity").context("identity has an operations port")?;
    TenantServiceClient::connect(format!("http://{ops}")).await?.finish_adoption(finish).await?;

    let person = person(bench, 0)?;
    let mut asks = Writer::connect(bench, &person).await?;
    let mut made = async |path: &str, body: Value| -> Result<Value, anyhow::Error> {
        Ok(serde_json::from_str(&asks.ask("POST", path, &body.to_string()).await?)?)
    };
    made("/v1/tenants", json!({"id": "bench-tokens", "name": "Bench", "country": "DE", "currency": "EUR"})).await?;
    let account = made("/v1/serviceAccounts", json!({"name": "bench", "role": "MEMBER"})).await?["id"].clone();
    let scopes = ["todo:read", "todo:write"];
    let key = made("/v1/apiKeys", json!({"serviceAccount": account, "name": "bench", "scopes": scopes})).await?;
    let key = key["key"].as_str().context("a key is shown once")?.to_owned();
    let token = identity(bench).await?.exchange_token(of(&key, API_KEY)).await?.into_inner().access_token;
    Ok(Known { person, key, token })
}

async fn identity(bench: &Bench) -> Result<IdentityServiceClient<Channel>, anyhow::Error> {
    Ok(IdentityServiceClient::connect(format!("http://{}", bench.address("identity"))).await?)
}

fn of(credential: &str, kind: &str) -> ExchangeTokenRequest {
    ExchangeTokenRequest {
        grant_type: TOKEN_EXCHANGE.to_owned(),
        subject_token: credential.to_owned(),
        subject_token_type: kind.to_owned(),
        ..ExchangeTokenRequest::default()
    }
}

/// What the gateway and a service do to know a caller and what it may, in this process and without the rest of a call.
async fn pieces(bench: &Bench, known: &Known) -> Result<(), anyhow::Error> {
    let keys = bench.stack.home.path("bench-jwks.json");
    std::fs::write(&keys, serde_json::to_vec(Issuer::open(&bench.stack.home)?.jwks())?)?;
    let verifier = || Verifier::new(JwksSource::File(keys.clone()), ISSUER, AUDIENCE);
    let process = Process::new("bench", "bench");
    let home = &bench.stack.home;
    let credentials = devstack::nats::credentials_file(home, "todo-consumer");
    let nats = devstack::nats::connect(home, &bench.url("nats"), &credentials).await?;
    let revocations = Revocations::follow(&process, nats);
    while !process.readiness.get().1["revocations"] {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let authorization = format!("Bearer {}", known.token);
    let (edge, service) = (verifier()?, verifier()?);
    let (mut whole, mut new) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs * 20 {
        let began = Instant::now();
        for _ in 0..BATCH {
            black_box(edge.verify(Some(&authorization)).await?);
            let caller = service.verify(Some(&authorization)).await?;
            anyhow::ensure!(!revocations.check(&caller)?, "identity's stream is not heard");
            WRITE.check(black_box(&caller))?;
        }
        whole.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH));
        // One that was never seen: its signature is verified.
        let (fresh, began) = (verifier()?, Instant::now());
        fresh.refresh().await?;
        let read = began.elapsed();
        fresh.verify(Some(&authorization)).await?;
        new.push((began.elapsed() - read).as_secs_f64() * 1e6);
    }
    process.lifecycle.stopping().cancel();
    std::fs::remove_file(&keys)?;
    let text = |all: &[f64]| format!("{:.1} µs (p99 {:.1})", quantile(all, 0.5), quantile(all, 0.99));
    figure("verified twice, taken away, permitted (goal: 300 µs)", &text(&whole));
    figure("  of a token that was not seen before, each of the two", &text(&new));
    Ok(())
}

/// Reads and writes by one client: by the fleet's token, and by the key, whose token the gateway has in hand.
async fn by_turns(bench: &Bench, args: &TokensArgs, known: &Known) -> Result<(), anyhow::Error> {
    let mut clients = [Writer::connect(bench, &known.token).await?, Writer::connect(bench, &known.key).await?];
    let todo: Value =
        serde_json::from_str(&clients[0].ask("POST", "/v1/todos", r#"{"title":"Mend the hatch"}"#).await?)?;
    let read = format!("/v1/todos/{}", todo["id"].as_str().context("a todo has an id")?);
    for (what, method, path, body) in
        [("GET", "GET", read.as_str(), ""), ("POST", "POST", "/v1/todos", r#"{"title":"Mend the forward hatch"}"#)]
    {
        let mut more = Vec::new();
        for _ in 0..bench.runs {
            let (mut latencies, began) = ([Vec::new(), Vec::new()], Instant::now());
            while began.elapsed() < Duration::from_secs(args.seconds) {
                for (client, latencies) in clients.iter_mut().zip(&mut latencies) {
                    let asked = Instant::now();
                    client.ask(method, path, body).await?;
                    latencies.push(asked.elapsed().as_secs_f64() * 1e6);
                }
            }
            let [token, key] = latencies.map(|latencies| quantile(&latencies, 0.5));
            figure(&format!("{what} p50 by a token, by a key, one by one"), &format!("{token:.0} µs, {key:.0} µs"));
            more.push(key - token);
        }
        figure(&format!("  what the key adds to {what}"), &format!("{:.0} µs", median(&more)));
    }
    Ok(())
}

async fn exchanges(bench: &Bench, args: &TokensArgs, known: &Known) -> Result<(), anyhow::Error> {
    let keys = SigningKeys::read(&bench.stack.home.secret("todo-service-key")?)?;
    let todo = "todo".parse()?;
    let carried = || -> Result<ExchangeTokenRequest, anyhow::Error> {
        let (actor_token, actor_token_type) = (assertion(&keys, &todo, ISSUER)?, JWT.to_owned());
        Ok(ExchangeTokenRequest { actor_token, actor_token_type, ..of(&known.token, ACCESS_TOKEN) })
    };
    let client = identity(bench).await?;
    for (what, request) in [
        ("a key", &(|| Ok(of(&known.key, API_KEY))) as &dyn Fn() -> Result<ExchangeTokenRequest, anyhow::Error>),
        ("a person's token", &|| Ok(of(&known.person, ACCESS_TOKEN))),
        ("a caller that a service carries along", &carried),
    ] {
        let mut rates = Vec::new();
        let mut latencies = Vec::new();
        for _ in 0..bench.runs {
            let (began, until) = (Instant::now(), Instant::now() + Duration::from_secs(args.seconds));
            let each = (0..args.clients).map(|_| async {
                let (mut client, mut latencies) = (client.clone(), Vec::new());
                while Instant::now() < until {
                    let asked = Instant::now();
                    client.exchange_token(request()?).await?;
                    latencies.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                Ok::<_, anyhow::Error>(latencies)
            });
            let all: Vec<f64> = try_join_all(each).await?.into_iter().flatten().collect();
            rates.push(all.len() as f64 / began.elapsed().as_secs_f64());
            latencies.extend(all);
        }
        let text = format!(
            "{:.0}/s, p50/p99 {:.1}/{:.1} ms",
            median(&rates),
            quantile(&latencies, 0.5),
            quantile(&latencies, 0.99)
        );
        figure(what, &text);
    }
    Ok(())
}

async fn in_hand(bench: &Bench, args: &TokensArgs) -> Result<(), anyhow::Error> {
    let memory = || ["gateway", "identity", "todo"].map(|unit| resident(bench.pid(unit)));
    let before = memory();
    let each = (0..args.clients).map(|client| async move {
        for number in (client..CACHED).step_by(args.clients) {
            Writer::connect(bench, &person(bench, number + 1)?).await?.ask("GET", "/v1/todos?pageSize=1", "").await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    try_join_all(each).await?;
    for (unit, (before, after)) in ["gateway", "identity", "todo"].iter().zip(before.iter().zip(memory())) {
        figure(unit, &format!("{before:.1} MiB before, {after:.1} MiB with them"));
    }
    Ok(())
}
