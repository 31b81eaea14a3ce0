//! The gateway beside what others would take in its place: grpc-gateway with the same tokens, before the same todo service.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use devstack::ports::Ports;
use futures::future::try_join_all;
use proto::todo::todo_service_client::TodoServiceClient;
use proto::todo::{GetTodoRequest, ListTodosRequest, Todo};
use serde_json::Value;
use tokio::process::{Child, Command};
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::edge::{Writer, repeat, token};
use crate::process::{cpu, listens, resident};
use crate::report::{figure, heading, median, quantile};
use crate::stack::Bench;

/// How many todos a list holds.
const PAGE: i32 = 20;
const TITLE: &str = "Mend the forward hatch before the race";
/// `scripts/peers.sh` ends with this where a part of a peer cannot be had.
const UNAVAILABLE: i32 = 3;

#[derive(Args)]
pub struct PeersArgs {
    /// How many clients call at once.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    clients: Vec<usize>,
    /// For how many seconds through each.
    #[arg(long, default_value = "5")]
    seconds: u64,
}

impl Default for PeersArgs {
    fn default() -> Self {
        Self { clients: vec![1, 16, 64], seconds: 5 }
    }
}

#[derive(Clone, Copy)]
enum Call {
    Get,
    List,
    Create,
}

/// What stands before the todo service.
struct Gateway {
    name: &'static str,
    address: String,
    pid: u32,
}

/// What one run through one of them gave.
struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
    /// CPU µs of the gateway for each request, and its memory in MiB; nothing where there is none.
    micros: f64,
    memory: f64,
}

impl Run {
    fn new(latencies: &[f64], elapsed: Duration, (used, memory): (Duration, f64)) -> Self {
        let requests = latencies.len() as f64;
        Self {
            rate: requests / elapsed.as_secs_f64(),
            p50: quantile(latencies, 0.5),
            p99: quantile(latencies, 0.99),
            micros: used.as_secs_f64() * 1e6 / requests,
            memory,
        }
    }
}

/// The caller, and a todo of hers.
struct Subject {
    token: String,
    id: String,
}

pub async fn run(bench: &Bench, args: &PeersArgs) -> Result<(), anyhow::Error> {
    heading(&format!("The gateway beside grpc-gateway, {} s through each by turns", args.seconds));
    let Some(program) = build().await? else {
        figure("NOT MEASURED", "a part of grpc-gateway cannot be had, see above");
        return Ok(());
    };
    let subject = prepare(bench).await?;
    let (alone, unshared) = without_redis(bench).await?;
    let (peer, theirs) = grpc_gateway(bench, &program).await?;
    let ours = Gateway { name: "ours", address: bench.address("gateway"), pid: bench.pid("gateway") };
    let gateways = [ours, unshared, theirs];
    bench.pause(&["opensearch", "search-projector"])?;
    let measured = async {
        for call in [Call::Get, Call::List, Call::Create] {
            for clients in &args.clients {
                compare(bench, (&gateways, &subject), (call, *clients, args.seconds)).await?;
            }
        }
        Ok(())
    };
    let measured = measured.await;
    bench.resume(&["opensearch", "search-projector"])?;
    for mut process in [alone, peer] {
        process.kill().await?;
    }
    measured
}

/// The program of the peer, unless a registry does not give a part of it.
async fn build() -> Result<Option<PathBuf>, anyhow::Error> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/peers.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().await?;
    if output.status.code() == Some(UNAVAILABLE) {
        return Ok(None);
    }
    anyhow::ensure!(output.status.success(), "scripts/peers.sh failed");
    Ok(Some(PathBuf::from(String::from_utf8(output.stdout)?.trim())))
}

async fn prepare(bench: &Bench) -> Result<Subject, anyhow::Error> {
    let token = token(bench, "bench-peers")?;
    let mut writer = Writer::connect(bench, &token).await?;
    let mut id = String::new();
    for _ in 0..=PAGE {
        let todo: Value = serde_json::from_str(&writer.ask("POST", "/v1/todos", &body()).await?)?;
        todo["id"].as_str().context("a todo has an id")?.clone_into(&mut id);
    }
    Ok(Subject { token, id })
}

fn body() -> String {
    serde_json::json!({ "title": TITLE }).to_string()
}

/// Waits until it answers.
async fn started(name: &'static str, address: String, mut command: Command) -> Result<(Child, Gateway), anyhow::Error> {
    let mut process = command.stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    listens(&mut process, &address).await.context(name)?;
    let pid = process.id().context("it has ended")?;
    Ok((process, Gateway { name, address, pid }))
}

/// One more gateway of ours, which counts its callers by itself: what sharing rates costs a call.
async fn without_redis(bench: &Bench) -> Result<(Child, Gateway), anyhow::Error> {
    let mut ports = Ports::default();
    let mut address = || Ok::<_, anyhow::Error>(format!("127.0.0.1:{}", ports.pick(0)?));
    let (listen, ops) = (address()?, address()?);
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", bench.pid("gateway")))?;
    if !environment.contains("FLOTILLA_REDIS_URL") {
        figure("NOTE", "there is no Redis here: ours has rates of its own in both rows");
    }
    let environment = environment.split('\0').filter_map(|variable| variable.split_once('='));
    let mut command = Command::new(bench.programs.join("gateway"));
    command.arg("serve").envs(environment.filter(|(name, _)| !name.starts_with("FLOTILLA_REDIS_URL")));
    command.env("FLOTILLA_LISTEN", &listen).env("FLOTILLA_OPS_LISTEN", ops);
    started("ours, rates of its own", listen, command).await
}

async fn grpc_gateway(bench: &Bench, program: &Path) -> Result<(Child, Gateway), anyhow::Error> {
    let listen = format!("127.0.0.1:{}", Ports::default().pick(0)?);
    let mut command = Command::new(program);
    command.args(["-listen", &listen, "-todo", &bench.address("todo")]);
    command.args(["-jwks", &format!("{}/jwks.json", bench.url("issuer"))]);
    command.args(["-issuer", devstack::issuer::ISSUER, "-audience", devstack::issuer::AUDIENCE]);
    started("grpc-gateway", listen, command).await
}

/// By turns through each gateway, and straight to todo, as often as the bench's runs.
async fn compare(
    bench: &Bench,
    (gateways, subject): (&[Gateway], &Subject),
    (call, clients, seconds): (Call, usize, u64),
) -> Result<(), anyhow::Error> {
    let name = match call {
        Call::Get => "GET of one todo",
        Call::List => "list of a page",
        Call::Create => "POST of one",
    };
    figure(&format!("{name}, {clients} clients"), "");
    let mut direct = Vec::new();
    let mut runs: Vec<Vec<Run>> = gateways.iter().map(|_| Vec::new()).collect();
    for round in 0..bench.runs {
        direct.push(straight(bench, subject, (call, clients, seconds)).await?);
        for turn in 0..gateways.len() {
            let at = (round + turn) % gateways.len();
            runs[at].push(through(&gateways[at], subject, (call, clients, seconds)).await?);
        }
    }
    let of = |runs: &[Run], value: fn(&Run) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
    let text = format!(
        "{:.0}/s, p50/p99 {:.2}/{:.2} ms",
        of(&direct, |run| run.rate),
        of(&direct, |run| run.p50),
        of(&direct, |run| run.p99)
    );
    figure("  gRPC straight to todo", &text);
    for (gateway, runs) in gateways.iter().zip(&runs) {
        let micros = of(runs, |run| run.micros);
        let text = format!(
            "{:.0}/s, p50/p99 {:.2}/{:.2} ms, {micros:.0} µs of processor for each: {:.0}/s per core, {:.1} MiB",
            of(runs, |run| run.rate),
            of(runs, |run| run.p50),
            of(runs, |run| run.p99),
            1e6 / micros,
            of(runs, |run| run.memory)
        );
        figure(&format!("  {}", gateway.name), &text);
    }
    let (theirs, ours) = runs.split_last().context("a peer")?;
    for (gateway, runs) in gateways.iter().zip(ours) {
        let ratio = |value: fn(&Run) -> f64| {
            let ratios: Vec<f64> = runs.iter().zip(theirs).map(|(ours, theirs)| value(ours) / value(theirs)).collect();
            let all: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
            format!("{:.2} ({})", median(&ratios), all.join(", "))
        };
        let text = format!(
            "rate {}, p50 {}, p99 {}, processor {}, memory {}",
            ratio(|run| run.rate),
            ratio(|run| run.p50),
            ratio(|run| run.p99),
            ratio(|run| run.micros),
            ratio(|run| run.memory)
        );
        figure(&format!("  {} to grpc-gateway", gateway.name), &text);
    }
    Ok(())
}

async fn through(
    gateway: &Gateway,
    subject: &Subject,
    (call, clients, seconds): (Call, usize, u64),
) -> Result<Run, anyhow::Error> {
    let connect = || Writer::connect_to(gateway.address.clone(), &subject.token);
    let connections = try_join_all((0..clients).map(|_| connect())).await?;
    let (one, page, body) = (format!("/v1/todos/{}", subject.id), format!("/v1/todos?pageSize={PAGE}"), body());
    let before = cpu(gateway.pid);
    let (latencies, elapsed, connections) = repeat(connections, seconds, async |writer| {
        let answered = match call {
            Call::Get => writer.ask("GET", &one, "").await,
            Call::List => writer.ask("GET", &page, "").await,
            Call::Create => writer.ask("POST", "/v1/todos", &body).await,
        };
        answered.map(drop)
    })
    .await?;
    let (used, memory) = (cpu(gateway.pid) - before, resident(gateway.pid));
    drop(connections);
    Ok(Run::new(&latencies, elapsed, (used, memory)))
}

/// The same calls over gRPC on one connection, without a gateway.
async fn straight(
    bench: &Bench,
    subject: &Subject,
    (call, clients, seconds): (Call, usize, u64),
) -> Result<Run, anyhow::Error> {
    let channel = Endpoint::from_shared(format!("http://{}", bench.address("todo")))?.connect().await?;
    let authorization: MetadataValue<_> = format!("Bearer {}", subject.token).parse()?;
    let clients = vec![TodoServiceClient::<Channel>::new(channel); clients];
    let (latencies, elapsed, _) = repeat(clients, seconds, async |todos| {
        let with = |key: &str| {
            let mut request = Request::new(());
            request.metadata_mut().insert("authorization", authorization.clone());
            request.metadata_mut().insert("idempotency-key", key.parse()?);
            Ok::<_, anyhow::Error>(request)
        };
        match call {
            Call::Get => {
                let read = GetTodoRequest { id: subject.id.clone() };
                todos.get_todo(with("read")?.map(|()| read)).await.map(drop)?;
            }
            Call::List => {
                let list = ListTodosRequest { page_size: PAGE, ..Default::default() };
                todos.list_todos(with("read")?.map(|()| list)).await.map(drop)?;
            }
            Call::Create => {
                let todo = Some(Todo { title: TITLE.to_owned(), ..Default::default() });
                let create = proto::todo::CreateTodoRequest { todo };
                todos.create_todo(with(&Uuid::now_v7().to_string())?.map(|()| create)).await.map(drop)?;
            }
        }
        Ok(())
    })
    .await?;
    Ok(Run::new(&latencies, elapsed, (Duration::ZERO, 0.0)))
}
