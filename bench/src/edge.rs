//! Writes through the edge, against pgbench with the same transaction.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use devstack::issuer::Issuer;
use futures::future::try_join_all;
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use uuid::Uuid;

use crate::bare::{self, Bare, METHOD, SUBJECT};
use crate::process::{cpu, cpu_with_children};
use crate::relays::TRACEPARENT;
use crate::report::{figure, heading, quantile, ratios};
use crate::stack::{Bench, allowed};

#[derive(Args)]
pub struct EdgeArgs {
    /// How many clients write at once.
    #[arg(long, default_value = "16")]
    clients: usize,
    /// For how many seconds.
    #[arg(long, default_value = "15")]
    seconds: u64,
}

impl Default for EdgeArgs {
    fn default() -> Self {
        Self { clients: 16, seconds: 15 }
    }
}

/// A connection that writes todos: HTTP/1.1 by hand, so that little of the processor goes into measuring.
pub struct Writer {
    stream: TcpStream,
    address: String,
    token: String,
    answer: Vec<u8>,
}

pub fn token(bench: &Bench, tenant: &str) -> Result<String, anyhow::Error> {
    Issuer::open(&bench.stack.home)?.token(tenant, "ann", chrono::TimeDelta::hours(4))
}

impl Writer {
    pub async fn connect(bench: &Bench, token: &str) -> Result<Self, anyhow::Error> {
        Self::connect_to(bench.address("gateway"), token).await
    }

    pub async fn connect_to(address: String, token: &str) -> Result<Self, anyhow::Error> {
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address, token: token.to_owned(), answer: Vec::new() })
    }

    /// One request and its answer, which must be a 200.
    pub async fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<String, anyhow::Error> {
        let (status, answer) = self.send(method, path, body).await?;
        anyhow::ensure!(status == 200, "{status}\n{answer}");
        Ok(answer)
    }

    /// One request, and the status and body of its answer.
    pub async fn send(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, String), anyhow::Error> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\nidempotency-key: {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            Uuid::now_v7(),
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.answer.clear();
        loop {
            anyhow::ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the gateway closed the connection");
            let text = String::from_utf8_lossy(&self.answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && is_whole(head, body)?
            {
                let status = head.split(' ').nth(1).context("an answer has a status")?.parse()?;
                return Ok((status, body.to_owned()));
            }
        }
    }
}

/// Whether all of a body has come. Of one that comes in chunks, their sizes stay in the text.
fn is_whole(head: &str, body: &str) -> Result<bool, anyhow::Error> {
    let headers = || head.lines().filter_map(|line| line.split_once(": "));
    if headers().any(|(name, value)| name.eq_ignore_ascii_case("transfer-encoding") && value == "chunked") {
        return Ok(body.ends_with("\r\n0\r\n\r\n"));
    }
    let length = headers().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let (_, length) = length.context("an answer has a length")?;
    Ok(body.len() >= length.parse()?)
}

/// The resources that one run used.
struct Run {
    rate: f64,
    latencies: Vec<f64>,
    /// CPU µs per write of each process.
    cpu: Vec<(&'static str, f64)>,
}

type Used = (&'static str, Duration);

impl Run {
    fn new(latencies: Vec<f64>, elapsed: Duration, before: &[Used], after: &[Used]) -> Self {
        let writes = latencies.len() as f64;
        let per_write = |(before, after): (&Used, &Used)| (after.0, (after.1 - before.1).as_secs_f64() * 1e6 / writes);
        let cpu = before.iter().zip(after).map(per_write).collect();
        Self { rate: writes / elapsed.as_secs_f64(), latencies, cpu }
    }

    fn cpu(&self) -> String {
        let cpu: Vec<String> = self.cpu.iter().map(|(name, micros)| format!("{name} {micros:.0}")).collect();
        cpu.join(", ")
    }
}

async fn through_the_edge(bench: &Bench, args: &EdgeArgs) -> Result<Run, anyhow::Error> {
    through(bench, args, &bench.address("gateway"), [bench.pid("gateway"), bench.pid("todo")]).await
}

/// The same measurement with the libraries alone.
async fn through_libraries(bench: &Bench, args: &EdgeArgs, payload: i64) -> Result<Run, anyhow::Error> {
    let database = bench.database().await?;
    let bare = Bare::start(bench, &database, usize::try_from(payload)?).await?;
    let pid = |child: &tokio::process::Child| child.id().context("it has ended");
    let run = through(bench, args, &bare.address, [pid(&bare.gateway)?, pid(&bare.todo)?]).await;
    bare.stop(bench, database).await?;
    run
}

async fn through(
    bench: &Bench,
    args: &EdgeArgs,
    address: &str,
    [gateway, todo]: [u32; 2],
) -> Result<Run, anyhow::Error> {
    let token = token(bench, "bench-edge")?;
    let used = || {
        [
            ("gateway", cpu(gateway)),
            ("todo", cpu(todo)),
            ("postgres", cpu_with_children(bench.pid("postgres"))),
            ("nats", cpu(bench.pid("nats"))),
            ("bench", cpu(std::process::id())),
        ]
    };
    let writers = try_join_all((0..args.clients).map(|_| Writer::connect_to(address.to_owned(), &token))).await?;
    let before = used();
    let (latencies, elapsed, _) = repeat(writers, args.seconds, async |writer| {
        writer.ask("POST", "/v1/todos", r#"{"title":"Mend the forward hatch before the race"}"#).await.map(drop)
    })
    .await?;
    Ok(Run::new(latencies, elapsed, &before, &used()))
}

/// Each of these clients does its work again and again for so many seconds: how long each took in ms, how long all took, and the clients.
pub async fn repeat<C>(
    clients: Vec<C>,
    seconds: u64,
    work: impl AsyncFn(&mut C) -> Result<(), anyhow::Error>,
) -> Result<(Vec<f64>, Duration, Vec<C>), anyhow::Error> {
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let work = &work;
    let all = clients.into_iter().map(|mut client| async move {
        let mut latencies = Vec::new();
        while Instant::now() < until {
            let began = Instant::now();
            work(&mut client).await?;
            latencies.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok::<_, anyhow::Error>((latencies, client))
    });
    let (latencies, clients): (Vec<_>, Vec<_>) = try_join_all(all).await?.into_iter().unzip();
    Ok((latencies.into_iter().flatten().collect(), started.elapsed(), clients))
}

/// The statements of `CreateTodo` in their order and their round trips, as the same role under the same policies. (The
/// tenant is set with the second instead of the first: pgbench cannot prepare two statements at once.)
async fn pgbench(bench: &Bench, args: &EdgeArgs, payload: i64) -> Result<(f64, f64), anyhow::Error> {
    let database = bench.database().await?;
    let script = std::env::temp_dir().join(format!("{}.sql", database.name));
    std::fs::write(
        &script,
        format!(
            "\\set n random(1, 9000000000000000)\n\
             begin;\n\
             select set_config('app.tenant', 'bench', true), pg_try_advisory_xact_lock(:n);\n\
             select fingerprint, response from idempotency where tenant = 'bench' and principal = 'ann' \
             and method = '{METHOD}' and key = 'key-' || :n;\n\
             insert into todo (tenant, id, title, notes, status, due_time, labels, assignee, create_time, update_time, \
             complete_time, created_by, version) values ('bench', gen_random_uuid(), \
             'Mend the forward hatch before the race', '', 'OPEN', null, '{{}}', null, now(), now(), null, 'ann', 1);\n\
             insert into idempotency (tenant, principal, method, key, fingerprint, response) values ('bench', 'ann', \
             '{METHOD}', 'key-' || :n, sha256('x'), convert_to(repeat('x', 150), 'UTF8'));\n\
             insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) values \
             (gen_random_uuid(), 'bench', gen_random_uuid()::text, '{SUBJECT}', '{TRACEPARENT}', \
             convert_to(repeat('x', {payload}), 'UTF8')) \
             returning seq, created_at;\n\
             commit;\n"
        ),
    )?;
    let before = cpu_with_children(bench.pid("postgres"));
    let mut command = Command::new(bench.stack.postgres.bin.join("pgbench"));
    command.args(["-n", "-M", "prepared", "-j", "2", "-c", &args.clients.to_string(), "-T", &args.seconds.to_string()]);
    let output = command.arg("-f").arg(&script).arg(&database.app).output().await?;
    std::fs::remove_file(&script)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "pgbench: {said}{}", String::from_utf8_lossy(&output.stderr));
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench tells its rate")?;
    let tps: f64 = tps.split_whitespace().next().context("a number")?.parse()?;
    let used = (cpu_with_children(bench.pid("postgres")) - before).as_secs_f64();
    bench.drop_database(database).await?;
    Ok((tps, used * 1e6 / (tps * args.seconds as f64)))
}

/// The same from this process with sqlx, as the todo service sends it: the cost of its library, without service,
/// gateway and stream.
async fn sqlx_alone(bench: &Bench, args: &EdgeArgs, payload: i64) -> Result<Run, anyhow::Error> {
    let database = bench.database().await?;
    let payload = vec![b'x'; usize::try_from(payload)?];
    let connect = || PgConnection::connect(&database.app);
    let connections = try_join_all((0..args.clients).map(|_| connect())).await?;
    let used = || [("postgres", cpu_with_children(bench.pid("postgres"))), ("client", cpu(std::process::id()))];
    let before = used();
    let (latencies, elapsed, connections) = repeat(connections, args.seconds, async |db| {
        let key = Uuid::now_v7().to_string();
        bare::create(db, "Mend the forward hatch before the race", &key, &payload).await.map(drop)
    })
    .await?;
    // Before the connections end: a backend's CPU time counts as long as it lives.
    let after = used();
    drop(connections);
    bench.drop_database(database).await?;
    Ok(Run::new(latencies, elapsed, &before, &after))
}

pub async fn run(bench: &Bench, args: &EdgeArgs) -> Result<(), anyhow::Error> {
    heading(&format!("POST /v1/todos through the edge, {} clients for {} s", args.clients, args.seconds));
    bench.pause(&["opensearch", "search-projector"])?;
    // Once to warm up, and to know how large an event is.
    through_the_edge(bench, &EdgeArgs { clients: args.clients, seconds: 3 }).await?;
    let mut db = PgConnection::connect(&bench.stack.postgres.superuser_url("todo")).await?;
    let payload: i64 = sqlx::query_scalar("select avg(length(payload))::bigint from outbox").fetch_one(&mut db).await?;
    let (mut raw, mut postgres) = (Vec::new(), Vec::new());
    let (mut edge, mut libraries, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.runs {
        bench.pause(&["todo", "gateway"])?;
        let (rate, micros) = pgbench(bench, args, payload).await?;
        alone.push(sqlx_alone(bench, args, payload).await?);
        libraries.push(through_libraries(bench, args, payload).await?);
        bench.resume(&["todo", "gateway"])?;
        raw.push(rate);
        postgres.push(micros);
        edge.push(through_the_edge(bench, args).await?);
    }
    bench.resume(&["opensearch", "search-projector"])?;
    let rates = |runs: &[Run]| runs.iter().map(|run| run.rate).collect::<Vec<_>>();
    ratios("writes, of pgbench with the same transaction", &rates(&edge), &raw);
    let last = edge.last().context("a run")?;
    let (p50, p99) = (quantile(&last.latencies, 0.5), quantile(&last.latencies, 0.99));
    figure("latency of the last run", &format!("p50 {p50:.1} ms, p99 {p99:.1} ms"));
    figure("CPU µs per write of the last run", &last.cpu());
    figure("CPU µs per transaction of pgbench's postgres", &format!("{:.0}", postgres.last().unwrap_or(&0.0)));
    ratios("the same way with the libraries alone, of pgbench", &rates(&libraries), &raw);
    ratios("  ours of that", &rates(&edge), &rates(&libraries));
    figure("  CPU µs per write of its last run", &libraries.last().context("a run")?.cpu());
    ratios("sqlx alone: no service, no gateway, no stream", &rates(&alone), &raw);
    figure("  CPU µs per write of its last run", &alone.last().context("a run")?.cpu());
    Ok(())
}

/// What the log lines of requests cost: whole fleets with and without them take turns.
pub async fn lines(runs: usize, args: &EdgeArgs) -> Result<(), anyhow::Error> {
    heading(&format!("Log lines: POST /v1/todos, {} clients for {} s", args.clients, args.seconds));
    let off = "info,request=off,outbox::published=off,consumer::handled=off";
    let (mut rates, mut micros) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..runs {
        for (index, log) in ["info", off].into_iter().enumerate() {
            let mut env = allowed(1_000_000, 1_000);
            env.push(("FLOTILLA_LOG".to_owned(), log.to_owned()));
            let bench = Bench::start(runs, env).await?;
            bench.pause(&["opensearch", "search-projector"])?;
            through_the_edge(&bench, &EdgeArgs { clients: args.clients, seconds: 3 }).await?;
            let run = through_the_edge(&bench, args).await?;
            bench.resume(&["opensearch", "search-projector"])?;
            bench.stop().await;
            rates[index].push(run.rate);
            micros[index].push(run.cpu.iter().take(2).map(|(_, micros)| micros).sum::<f64>());
        }
    }
    ratios("writes with lines, of those without", &rates[0], &rates[1]);
    let per_write: Vec<String> =
        micros[0].iter().zip(&micros[1]).map(|(with, without)| format!("{with:.0} to {without:.0}")).collect();
    figure("CPU µs of gateway and todo per write, with to without", &per_write.join(", "));
    Ok(())
}
