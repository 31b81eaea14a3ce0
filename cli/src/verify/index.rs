//! Todos against the index that shows them: by key, with a second look at what differs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use contracts::events::todo::{SERVICE, Status, Todo};
use search_projector::store::Document;
use serde_json::{Value, json};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::{Report, Throttle, VerifyArgs, opensearch};
use crate::events;
use crate::outbox::database;
use crate::stack::Context;

const CHUNK: i64 = 1_000;
/// More than these are not looked at twice: the model is wrong then, not late.
const SUSPECTS: usize = 100_000;

/// A todo as the database has it.
#[derive(Debug, Clone, FromRow)]
pub struct Row {
    pub tenant: String,
    pub id: Uuid,
    pub title: String,
    pub notes: String,
    pub status: String,
    pub due_time: Option<DateTime<Utc>>,
    pub labels: Vec<String>,
    pub assignee: Option<String>,
    pub create_time: DateTime<Utc>,
    pub update_time: DateTime<Utc>,
    pub complete_time: Option<DateTime<Utc>>,
    pub delete_time: Option<DateTime<Utc>>,
    pub created_by: String,
    pub version: i32,
}

impl Row {
    /// The document that the index is to have of it.
    ///
    /// # Errors
    /// The row holds what no todo may.
    pub fn document(&self, index_time: DateTime<Utc>) -> Result<Document, anyhow::Error> {
        let user = |id: &String| id.parse().map_err(|error| anyhow::anyhow!("{error}"));
        let todo = Todo {
            id: self.id.to_string().parse().map_err(|error| anyhow::anyhow!("{error}"))?,
            title: self.title.clone(),
            notes: self.notes.clone(),
            status: if self.status == "OPEN" { Status::Open } else { Status::Completed },
            due_time: self.due_time,
            labels: self.labels.clone(),
            assignee: self.assignee.as_ref().map(user).transpose()?,
            // The index does not hold these.
            recurrence: None,
            occurrence: None,
            create_time: self.create_time,
            update_time: self.update_time,
            complete_time: self.complete_time,
            created_by: user(&self.created_by)?,
            version: self.version,
        };
        Ok(Document::new(self.tenant.parse()?, &todo, self.delete_time.is_some(), index_time))
    }
}

/// So often what differs is looked at again: an event may still be on its way from the outbox into the stream.
const ROUNDS: usize = 4;

type Key = (String, Uuid);

struct Index<'a> {
    http: reqwest::Client,
    base: String,
    db: PgConnection,
    args: &'a VerifyArgs,
    throttle: Throttle,
}

/// Compares; what differs is looked at again once `consumer` has handled what is in the stream by then.
pub async fn verify(
    context: &Context,
    args: &VerifyArgs,
    consumer: &str,
    report: &mut Report,
) -> Result<(), anyhow::Error> {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
    let base = format!("{}/{}", opensearch(context)?, args.index);
    let db = database(context, SERVICE).await?;
    let mut index = Index { http, base, db, args, throttle: Throttle::new(args.rate) };
    let mut suspects = BTreeMap::new();
    index.todos(report, &mut suspects).await?;
    index.documents(report, &mut suspects).await?;
    for round in 0..ROUNDS {
        if suspects.is_empty() {
            break;
        }
        match index.again(suspects.clone(), context, consumer).await {
            Ok(still) => suspects = still,
            Err(error) => {
                report.unchecked.push(format!("whether what differs is only late (look {}): {error:#}", round + 2));
                break;
            }
        }
    }
    for ((tenant, id), why) in suspects {
        report.tenants.entry(tenant.clone()).or_default().differing += 1;
        report.diverged.add(json!({"tenant": tenant, "id": id, "why": why}));
    }
    Ok(())
}

/// Waits until all that the outbox holds now is in the stream, and the projector has acknowledged all that this holds then.
async fn caught_up(
    context: &Context,
    db: &mut PgConnection,
    consumer: &str,
    patience: Duration,
) -> Result<(), anyhow::Error> {
    let mark: i64 = sqlx::query_scalar(
        "select coalesce((select seq from outbox o where not exists (select from outbox_parked p where p.seq = o.seq) \
         order by seq desc limit 1), 0)",
    )
    .fetch_one(db)
    .await?;
    let (_js, stream) = events::open(context).await?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let waited = async {
        let mut last = None;
        loop {
            tick.tick().await;
            if last.is_none() {
                let state = stream.get_info().await.context("reading the stream")?.state;
                let seq = match stream.get_raw_message(state.last_sequence).await {
                    Ok(message) => {
                        message.headers.get(outbox::SEQ_HEADER).and_then(|seq| seq.as_str().parse::<i64>().ok())
                    }
                    Err(_) => None,
                };
                // One of somebody else's at the end says nothing of the relay.
                last = (mark == 0 || seq.is_none_or(|seq| seq >= mark)).then_some(state.last_sequence);
            }
            let Some(last) = last else { continue };
            let info = stream.consumer_info(consumer).await.context("asking for the projector's consumer")?;
            // The floor stands behind what the filter leaves out.
            if info.ack_floor.stream_sequence >= last || (info.num_pending == 0 && info.num_ack_pending == 0) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(patience, waited)
        .await
        .context("relay or projector are behind, and did not catch up in time")?
}

pub const COLUMNS: &str = "tenant, id, title, notes, status, due_time, labels, assignee, create_time, update_time, \
    complete_time, delete_time, created_by, version";

impl Index<'_> {
    /// Every todo must be in the index as it is.
    async fn todos(&mut self, report: &mut Report, suspects: &mut BTreeMap<Key, String>) -> Result<(), anyhow::Error> {
        let mut after: Key = (String::new(), Uuid::nil());
        loop {
            let sql = format!(
                "select {COLUMNS} from todo where (tenant, id) > ($1, $2) and ($3::text is null or tenant = $3) \
                 and ($4::timestamptz is null or update_time >= $4) and ($5::timestamptz is null or update_time < $5) \
                 order by tenant, id limit $6"
            );
            let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
                .bind(&after.0)
                .bind(after.1)
                .bind(self.args.tenant.as_ref().map(|tenant| tenant.as_str()))
                .bind(self.args.from)
                .bind(self.args.to)
                .bind(CHUNK)
                .fetch_all(&mut self.db)
                .await
                .context("reading the todos")?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = (last.tenant.clone(), last.id);
            report.todos += rows.len() as u64;
            self.throttle.read(rows.len()).await;
            let keys: Vec<Key> = rows.iter().map(|row| (row.tenant.clone(), row.id)).collect();
            for (row, document) in rows.iter().zip(self.get(&keys).await?) {
                report.tenants.entry(row.tenant.clone()).or_default().todos += 1;
                if let Some(why) = differs(row, document.as_ref()) {
                    suspect(suspects, (row.tenant.clone(), row.id), why)?;
                }
            }
        }
    }

    /// Every document must be a todo.
    async fn documents(
        &mut self,
        report: &mut Report,
        suspects: &mut BTreeMap<Key, String>,
    ) -> Result<(), anyhow::Error> {
        let mut after: Option<Value> = None;
        loop {
            let mut filter = Vec::new();
            if let Some(tenant) = &self.args.tenant {
                filter.push(json!({"term": {"tenant": tenant}}));
            }
            if self.args.from.is_some() || self.args.to.is_some() {
                filter.push(json!({"range": {"update_time": {"gte": self.args.from, "lt": self.args.to}}}));
            }
            let mut body = json!({
                "size": CHUNK, "query": {"bool": {"filter": filter}}, "sort": [{"id": "asc"}, {"tenant": "asc"}],
                "_source": ["tenant", "id"], "track_total_hits": false,
            });
            if let Some(after) = &after {
                body["search_after"] = after.clone();
            }
            let answer = self.ask("_search", &body).await?;
            let hits = answer["hits"]["hits"].as_array().cloned().unwrap_or_default();
            let Some(last) = hits.last() else { return Ok(()) };
            after = Some(last["sort"].clone());
            report.documents += hits.len() as u64;
            self.throttle.read(hits.len()).await;
            let text = |hit: &Value, name: &str| hit["_source"][name].as_str().unwrap_or_default().to_owned();
            let ids: Vec<Uuid> = hits.iter().filter_map(|hit| text(hit, "id").parse().ok()).collect();
            let tenants: Vec<String> = hits.iter().map(|hit| text(hit, "tenant")).collect();
            let known: Vec<Key> = sqlx::query_as("select tenant, id from todo where id = any($1) and tenant = any($2)")
                .bind(&ids)
                .bind(&tenants)
                .fetch_all(&mut self.db)
                .await
                .context("looking for the documents' todos")?;
            let known: std::collections::HashSet<Key> = known.into_iter().collect();
            for hit in &hits {
                report.tenants.entry(text(hit, "tenant")).or_default().documents += 1;
                let (tenant, id) = (text(hit, "tenant"), text(hit, "id").parse().unwrap_or_default());
                if !known.contains(&(tenant.clone(), id)) {
                    suspect(suspects, (tenant, id), "the database has no such todo".to_owned())?;
                }
            }
        }
    }

    /// What still differs, although the projector has handled since what was in the stream. A todo that is being changed
    /// all the time may be newer in the index than it was when its row was read: its row must be so by then as well.
    async fn again(
        &mut self,
        suspects: BTreeMap<Key, String>,
        context: &Context,
        consumer: &str,
    ) -> Result<BTreeMap<Key, String>, anyhow::Error> {
        let keys: Vec<Key> = suspects.into_keys().collect();
        let mut still = BTreeMap::new();
        for keys in keys.chunks(CHUNK as usize) {
            let before = self.rows(keys).await?;
            caught_up(context, &mut self.db, consumer, Duration::from_secs(self.args.patience)).await?;
            let documents = self.get(keys).await?;
            let after = self.rows(keys).await?;
            for (key, document) in keys.iter().zip(documents) {
                let newer = |row: &&Row| document.as_ref().is_some_and(|document| document.version > row.version);
                let why = match (before.get(key), after.get(key)) {
                    (Some(row), Some(now)) if newer(&row) => {
                        newer(&now).then(|| differs(now, document.as_ref())).flatten()
                    }
                    (Some(row), _) => differs(row, document.as_ref()),
                    (None, Some(now)) => differs(now, document.as_ref()),
                    (None, None) => document.map(|_| "the database has no such todo".to_owned()),
                };
                if let Some(why) = why {
                    still.insert(key.clone(), why);
                }
            }
        }
        Ok(still)
    }

    async fn rows(&mut self, keys: &[Key]) -> Result<BTreeMap<Key, Row>, anyhow::Error> {
        let ids: Vec<Uuid> = keys.iter().map(|key| key.1).collect();
        let tenants: Vec<String> = keys.iter().map(|key| key.0.clone()).collect();
        let sql = format!("select {COLUMNS} from todo where id = any($1) and tenant = any($2)");
        let rows: Vec<Row> =
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(&ids).bind(&tenants).fetch_all(&mut self.db).await?;
        Ok(rows.into_iter().map(|row| ((row.tenant.clone(), row.id), row)).collect())
    }

    /// The documents of these todos as they are written, whether a search shows them yet or not.
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Document>>, anyhow::Error> {
        let docs: Vec<Value> = keys.iter().map(|(tenant, id)| json!({"_id": id, "routing": tenant})).collect();
        let answer = self.ask("_mget", &json!({"docs": docs})).await?;
        let docs = answer["docs"].as_array().context("OpenSearch gave no documents")?;
        anyhow::ensure!(docs.len() == keys.len(), "OpenSearch gave {} of {} documents", docs.len(), keys.len());
        docs.iter()
            .map(|doc| match doc["found"] == true {
                true => serde_json::from_value(doc["_source"].clone()).map(Some).context("reading a document"),
                false if doc["error"].is_null() => Ok(None),
                false => anyhow::bail!("OpenSearch does not give a document: {}", doc["error"]["reason"]),
            })
            .collect()
    }

    async fn ask(&self, what: &str, body: &Value) -> Result<Value, anyhow::Error> {
        let response = self.http.post(format!("{}/{what}", self.base)).json(body).send().await;
        let response = response.context("OpenSearch does not answer")?;
        let status = response.status();
        let answer: Value = response.json().await.context("reading an answer of OpenSearch")?;
        anyhow::ensure!(status.is_success(), "OpenSearch answers {what} with {status}: {}", answer["error"]["reason"]);
        Ok(answer)
    }
}

fn suspect(suspects: &mut BTreeMap<Key, String>, key: Key, why: String) -> Result<(), anyhow::Error> {
    anyhow::ensure!(
        suspects.len() < SUSPECTS,
        "more than {SUSPECTS} todos differ: is the read model of this database?"
    );
    suspects.insert(key, why);
    Ok(())
}

/// Why the index shows a todo otherwise than it is.
fn differs(row: &Row, document: Option<&Document>) -> Option<String> {
    let Some(document) = document else { return Some(format!("at version {}, and not in the index", row.version)) };
    if document.tenant.as_str() != row.tenant {
        return Some(format!("the index has it under the tenant {}", document.tenant));
    }
    if document.version != row.version {
        return Some(format!("at version {}, the index at {}", row.version, document.version));
    }
    match row.document(document.index_time) {
        Ok(is) if is == *document => None,
        Ok(_) => Some(format!("both at version {}, with another content", row.version)),
        Err(error) => Some(format!("the database has what no todo may: {error:#}")),
    }
}
