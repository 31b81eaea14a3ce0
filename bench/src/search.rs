//! The projector and the search.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::{self, consumer::PullConsumer};
use chrono::Utc;
use clap::Args;
use futures::StreamExt as _;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::edge::{Writer, token};
use crate::process::{self, Guests};
use crate::report::{figure, heading, quantile, ratios};
use crate::stack::Bench;

#[derive(Args)]
pub struct ProjectorArgs {
    /// How many events.
    #[arg(long, default_value = "200000")]
    events: usize,
}

impl Default for ProjectorArgs {
    fn default() -> Self {
        Self { events: 200_000 }
    }
}

#[derive(Args)]
pub struct SearchableArgs {
    /// Writes a second.
    #[arg(long, default_value = "200")]
    rate: u64,
    /// For how many seconds.
    #[arg(long, default_value = "75")]
    seconds: u64,
    /// How many of these at the start do not count: Java warms up.
    #[arg(long, default_value = "15")]
    warm_up: u64,
}

impl Default for SearchableArgs {
    fn default() -> Self {
        Self { rate: 200, seconds: 75, warm_up: 15 }
    }
}

/// Writes events of new todos into the outbox of the todo service, as it writes them: their ids follow the time (UUIDv7),
/// which spares the index many lookups of older versions.
async fn append(bench: &Bench, events: usize) -> Result<(), anyhow::Error> {
    let mut db = PgConnection::connect(&bench.stack.postgres.superuser_url("todo")).await?;
    sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
         select id, 'bench', id::text, 'evt.todo.created.v1.bench', convert_to(jsonb_build_object('specversion', '1.0', \
         'id', id, 'source', '/flotilla/todo', 'type', 'todo.created.v1', 'subject', id, 'time', now(), \
         'datacontenttype', 'application/json', 'dataschema', 'https://flotilla.example/schemas/todo.created.v1.json', \
         'sequence', '00000000000000000001', 'partitionkey', id, 'tenant', 'bench', 'data', jsonb_build_object( \
         'actor', jsonb_build_object('kind', 'user', 'id', 'ann'), 'todo', jsonb_build_object('id', id, 'title', \
         'Mend hatch ' || g || ' before the race of ' || md5(g::text), 'notes', 'Ask the harbour master for the keys of shed ' \
         || g % 97, 'status', 'OPEN', 'labels', jsonb_build_array('boat', 'race-' || g % 50), 'create_time', now(), \
         'update_time', now(), 'created_by', 'ann', 'version', 1)))::text, 'UTF8') \
         from (select (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || \
         lpad(to_hex(g % 4096), 3, '0') || '8' || substr(md5(random()::text), 1, 15))::uuid as id, g \
         from generate_series(1, $1) g) as todo",
    )
    .bind(events as i64)
    .execute(&mut db)
    .await?;
    Ok(())
}

async fn waiting(js: &jetstream::Context) -> Result<u64, anyhow::Error> {
    let stream = js.get_stream("EVENTS_TODO").await?;
    let consumer: PullConsumer = stream.get_consumer("search-projector").await.map_err(|e| anyhow::anyhow!(e))?;
    let info = consumer.get_info().await?;
    Ok(info.num_pending + info.num_ack_pending as u64)
}

/// One backlog of events, projected.
async fn project(bench: &Bench, events: usize) -> Result<(f64, f64), anyhow::Error> {
    let js = jetstream::new(bench.nats().await?);
    let stream = js.get_stream("EVENTS_TODO").await?;
    let before = stream.get_info().await?.state.last_sequence;
    bench.pause(&["search-projector"])?;
    append(bench, events).await?;
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    while stream.get_info().await?.state.last_sequence < before + events as u64 {
        tick.tick().await;
    }
    until_merged(bench).await?;
    let pid = bench.pid("search-projector");
    let (cpu, started) = (process::cpu(pid), Instant::now());
    bench.resume(&["search-projector"])?;
    while waiting(&js).await? > 0 {
        tick.tick().await;
        anyhow::ensure!(started.elapsed() < Duration::from_secs(300), "the projector does not get on");
    }
    let rate = events as f64 / started.elapsed().as_secs_f64();
    Ok((rate, (process::cpu(pid) - cpu).as_secs_f64() * 1e6 / events as f64))
}

fn http() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder().no_proxy().build()
}

/// Waits until OpenSearch has finished earlier work: it merges long after the last answer.
async fn until_merged(bench: &Bench) -> Result<(), anyhow::Error> {
    let (http, base, started) = (http()?, bench.opensearch()?, Instant::now());
    http.post(format!("{base}/_refresh")).send().await?;
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tick.tick().await;
        anyhow::ensure!(
            started.elapsed() < Duration::from_secs(300),
            "OpenSearch does not come to an end with merging"
        );
        let stats: Value = http.get(format!("{base}/_stats/merge")).send().await?.json().await?;
        if stats["_all"]["total"]["merges"]["current"] == 0 {
            return Ok(());
        }
    }
}

/// An empty index with the projector's settings and mapping.
async fn raw_index(bench: &Bench) -> Result<(), anyhow::Error> {
    let base = bench.opensearch()?;
    let http = http()?;
    http.delete(format!("{base}/raw")).send().await?;
    let index: Value = http.get(format!("{base}/todos")).send().await?.json().await?;
    let made = index.as_object().and_then(|all| all.values().next()).context("the projector's index")?;
    let mut settings = made["settings"]["index"].clone();
    for ours in ["creation_date", "provided_name", "uuid", "version"] {
        settings.as_object_mut().context("settings")?.remove(ours);
    }
    let body = json!({"settings": {"index": settings}, "mappings": made["mappings"]});
    let answer = http.put(format!("{base}/raw")).json(&body).send().await?;
    anyhow::ensure!(answer.status().is_success(), "{}", answer.text().await?);
    Ok(())
}

/// The same documents under new ids, as ready-made bulk requests, into that index.
async fn raw(bench: &Bench, documents: &mut [Value], size: usize, in_flight: usize) -> Result<f64, anyhow::Error> {
    let base = bench.opensearch()?;
    let http = http()?;
    // Ids that follow the time, as those of new todos do.
    documents.iter_mut().for_each(|document| document["id"] = json!(Uuid::now_v7()));
    let bodies: Vec<String> = documents
        .chunks(size)
        .map(|chunk| {
            let line = |document: &Value| {
                let routing = &document["tenant"];
                let action =
                    json!({"index": {"_id": document["id"], "routing": routing, "version": 1, "version_type": "external"}});
                format!("{action}\n{document}\n")
            };
            chunk.iter().map(line).collect()
        })
        .collect();
    let started = Instant::now();
    let sent = futures::stream::iter(bodies).map(|body| {
        let request = http.post(format!("{base}/raw/_bulk")).header("content-type", "application/x-ndjson").body(body);
        async move {
            // OpenSearch refuses what its heap cannot hold just now (429); a client sends it again, as the projector does.
            for _ in 0..500 {
                let answer = request.try_clone().context("a body in memory")?.send().await?;
                let refused = answer.status() == StatusCode::TOO_MANY_REQUESTS;
                let answer: Value = answer.json().await?;
                if !refused {
                    let items = answer["items"].as_array();
                    let failed = items.and_then(|items| items.iter().find(|item| !item["index"]["error"].is_null()));
                    anyhow::ensure!(answer["errors"] == false, "a raw bulk failed: {}", failed.unwrap_or(&answer));
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::bail!("OpenSearch refuses a raw bulk for lack of memory, for 10 s by now")
        }
    });
    let results: Vec<_> = sent.buffer_unordered(in_flight).collect().await;
    let rate = documents.len() as f64 / started.elapsed().as_secs_f64();
    results.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(rate)
}

/// The newest documents that the projector made.
async fn documents(bench: &Bench, count: usize) -> Result<Vec<Value>, anyhow::Error> {
    let http = http()?;
    let base = bench.opensearch()?;
    http.post(format!("{base}/todos/_refresh")).send().await?;
    let mut query = json!({"size": 10_000, "query": {"term": {"tenant": "bench"}}, "sort": [{"id": "desc"}]});
    let mut documents = Vec::with_capacity(count);
    while documents.len() < count {
        let mut answer: Value = http.post(format!("{base}/todos/_search")).json(&query).send().await?.json().await?;
        let hits = answer["hits"]["hits"].as_array_mut().context("hits")?;
        query["search_after"] = hits.last().context("the projector made too few documents")?["sort"].clone();
        documents.extend(hits.iter_mut().map(|hit| hit["_source"].take()));
    }
    documents.truncate(count);
    Ok(documents)
}

pub async fn projector(bench: &Bench, args: &ProjectorArgs) -> Result<(), anyhow::Error> {
    heading(&format!("Projector: {} events into OpenSearch", args.events));
    bench.pause(&["gateway"])?;
    // Java warms up for both.
    project(bench, args.events / 2).await?;
    let mut warm = documents(bench, args.events / 2).await?;
    raw_index(bench).await?;
    raw(bench, &mut warm, 1_000, 2).await?;
    let mut best = (0, 0, 0.0);
    for (size, in_flight) in [(500, 1), (500, 2), (1_000, 1), (1_000, 2), (2_000, 2), (1_000, 4)] {
        raw_index(bench).await?;
        until_merged(bench).await?;
        let rate = raw(bench, &mut warm, size, in_flight).await?;
        figure(&format!("raw _bulk, {size} documents, {in_flight} in flight"), &format!("{rate:.0}/s"));
        if rate > best.2 {
            best = (size, in_flight, rate);
        }
    }
    // The same total into both indices: the larger one is, the more it merges.
    project(bench, args.events).await?;
    let mut all = documents(bench, args.events).await?;
    raw_index(bench).await?;
    raw(bench, &mut warm, best.0, best.1).await?;
    raw(bench, &mut all, best.0, best.1).await?;
    let (mut ours, mut limit, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.runs {
        until_merged(bench).await?;
        limit.push(raw(bench, &mut all, best.0, best.1).await?);
        let (rate, micros) = project(bench, args.events).await?;
        ours.push(rate);
        cpu.push(micros);
    }
    http()?.delete(format!("{}/raw", bench.opensearch()?)).send().await?;
    bench.resume(&["gateway"])?;
    ratios(&format!("projector, of raw with {} documents, {} in flight", best.0, best.1), &ours, &limit);
    figure("projector: CPU per event, resident memory", &{
        let memory = process::resident(bench.pid("search-projector"));
        format!("{:.1} µs, {memory:.1} MiB", crate::report::median(&cpu))
    });
    Ok(())
}

pub async fn searchable(bench: &Bench, args: &SearchableArgs) -> Result<(), anyhow::Error> {
    heading(&format!("Write to searchable at {} writes/s for {} s", args.rate, args.seconds));
    let token = &token(bench, "bench-search")?;
    until_merged(bench).await?;
    let started = Instant::now();
    let clients = 8;
    let writers = (0..clients).map(|number| async move {
        let mut writer = Writer::connect(bench, token).await?;
        for n in (number..args.rate * args.seconds).step_by(clients as usize) {
            tokio::time::sleep_until((started + Duration::from_secs_f64(n as f64 / args.rate as f64)).into()).await;
            writer.ask("POST", "/v1/todos", &json!({"title": format!("write number {n}")}).to_string()).await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    // Beside them a few clients search for what they write.
    let lookers = (0..3_u32).map(|number| async move {
        let mut looker = Writer::connect(bench, token).await?;
        let mut lags = Vec::new();
        // A write is found right after a refresh: a client that writes again at once always waits for a whole interval. So all
        // moments of an interval get their turn.
        let phases = (1_u32..).map(|turn| f64::from(turn * 3 + number) * 0.618_034 % 1.0);
        for phase in phases {
            tokio::time::sleep(Duration::from_secs_f64(phase * 0.5)).await;
            if started.elapsed() > Duration::from_secs(args.seconds) {
                break;
            }
            let word = format!("w{}", Uuid::now_v7().simple());
            looker.ask("POST", "/v1/todos", &json!({"title": format!("find {word}")}).to_string()).await?;
            let (written, at) = (Instant::now(), Utc::now());
            let path = format!("/v1/todos:search?query={word}");
            while !looker.ask("GET", &path, "").await?.contains(&word) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                anyhow::ensure!(written.elapsed() < Duration::from_secs(30), "{word} is not found");
            }
            if written.duration_since(started) > Duration::from_secs(args.warm_up) {
                lags.push((at, Utc::now(), written.elapsed().as_secs_f64() * 1e3));
            }
        }
        Ok::<_, anyhow::Error>(lags)
    });
    let before = index_work(bench).await?;
    let mut guests = Guests::default();
    let all =
        async { tokio::try_join!(futures::future::try_join_all(writers), futures::future::try_join_all(lookers)) };
    let (_, lags) = tokio::select! {
        all = all => all?,
        never = guests.watch() => match never {},
    };
    let lags = || lags.iter().flatten();
    let tell = |what: &str, lags: &[f64]| {
        let of = |share| quantile(lags, share);
        let (p50, p99, most) = (of(0.5), of(0.99), of(1.0));
        figure(what, &format!("p50 {p50:.0} ms, p99 {p99:.0} ms, max {most:.0} ms over {} writes", lags.len()));
    };
    tell("answer to hit (refreshed every 500 ms)", &lags().map(|(_, _, lag)| *lag).collect::<Vec<_>>());
    let quiet = lags().filter(|(written, found, _)| guests.quiet(*written, *found));
    tell(&Guests::tell(&[&guests]), &quiet.map(|(_, _, lag)| *lag).collect::<Vec<_>>());
    let work = index_work(bench).await?;
    for (index, what) in ["refreshes", "documents", "searches"].into_iter().enumerate() {
        let (count, millis) = (work[index].0 - before[index].0, work[index].1 - before[index].1);
        let each = millis as f64 / count.max(1) as f64;
        figure(&format!("  {what} of the index"), &format!("{count}, {each:.1} ms each"));
    }
    Ok(())
}

/// How often the index was refreshed, written to in bulk and searched, and the ms that it took.
async fn index_work(bench: &Bench) -> Result<[(u64, u64); 3], anyhow::Error> {
    let http = http()?;
    let url = format!("{}/todos/_stats/refresh,indexing,search", bench.opensearch()?);
    let stats: Value = http.get(url).send().await?.json().await?;
    let all = &stats["_all"]["total"];
    let of = |count: &Value, millis: &Value| (count.as_u64().unwrap_or(0), millis.as_u64().unwrap_or(0));
    Ok([
        of(&all["refresh"]["total"], &all["refresh"]["total_time_in_millis"]),
        of(&all["indexing"]["index_total"], &all["indexing"]["index_time_in_millis"]),
        of(&all["search"]["query_total"], &all["search"]["query_time_in_millis"]),
    ])
}

pub async fn memory(bench: &Bench) -> Result<(), anyhow::Error> {
    heading("Memory of each service, idle after its start");
    for unit in ["gateway", "todo", "search-projector"] {
        figure(unit, &format!("{:.1} MiB", process::resident(bench.pid(unit))));
    }
    Ok(())
}
