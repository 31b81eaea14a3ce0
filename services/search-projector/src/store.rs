//! The index of todos in OpenSearch: one document per todo, written with the todo's version as external version, so
//! that an older event never overwrites a newer one. A deleted todo leaves a tombstone, because OpenSearch forgets the
//! versions of deleted documents after a minute. Searches always carry the tenant.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use contracts::events::todo::{Status, Todo};
use contracts::text::without_quotations;
use contracts::{TenantId, TodoId};
use opensearch::cert::{Certificate, CertificateValidation};
use opensearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
use opensearch::http::response::Response;
use opensearch::http::transport::{SingleNodeConnectionPool, TransportBuilder};
use opensearch::http::{Method, StatusCode, Url};
use opensearch::indices::{IndicesCreateParts, IndicesExistsAliasParts};
use opensearch::{OpenSearch, SearchParts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service::reread::Reread;
use service::secret::{self, ExposeSecret as _, Secret};
use service::{Process, clock, deadline};
use tracing::{info, instrument};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a search may take, at most.
const SEARCHES_WITHIN: Duration = Duration::from_secs(5);
/// How much longer its answer may be on its way.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// A todo as the index holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The todo's tenant.
    pub tenant: TenantId,
    /// The todo's id.
    pub id: TodoId,
    /// The todo's version.
    pub version: i32,
    /// Whether it is a tombstone, which keeps only these four fields of the todo.
    pub deleted: bool,
    /// When it was written.
    pub index_time: DateTime<Utc>,
    /// What is searched and shown.
    #[serde(flatten)]
    pub content: Option<Content>,
}

/// What is searched and shown of a todo that is not deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// See the todo.
    pub title: String,
    /// See the todo.
    pub notes: String,
    /// See the todo.
    pub status: Status,
    /// See the todo.
    pub labels: Vec<String>,
    /// See the todo.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub due_time: Option<DateTime<Utc>>,
    /// See the todo.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub assignee: Option<String>,
    /// See the todo.
    pub create_time: DateTime<Utc>,
    /// See the todo.
    pub update_time: DateTime<Utc>,
    /// See the todo.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub complete_time: Option<DateTime<Utc>>,
    /// See the todo.
    pub created_by: String,
}

impl Document {
    /// The document of a todo after a change.
    #[must_use]
    pub fn new(tenant: TenantId, todo: &Todo, deleted: bool, now: DateTime<Utc>) -> Self {
        let Todo {
            id,
            title,
            notes,
            status,
            due_time,
            labels,
            assignee,
            // Not searched for.
            recurrence: _,
            occurrence: _,
            create_time,
            update_time,
            complete_time,
            created_by,
            version,
        } = todo;
        let content = (!deleted).then(|| Content {
            title: title.clone(),
            notes: notes.clone(),
            status: *status,
            labels: labels.clone(),
            due_time: *due_time,
            assignee: assignee.as_ref().map(ToString::to_string),
            create_time: *create_time,
            update_time: *update_time,
            complete_time: *complete_time,
            created_by: created_by.to_string(),
        });
        Self { tenant, id: *id, version: *version, deleted, index_time: now, content }
    }
}

/// What to search for.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// Words that must all occur.
    pub words: String,
    /// Only todos in this status.
    pub status: Option<Status>,
    /// Only todos with this label.
    pub label: Option<String>,
    /// The score and id of the hit to continue behind.
    pub after: Option<(f64, TodoId)>,
    /// At most so many hits.
    pub limit: usize,
}

/// One hit.
#[derive(Debug, Clone)]
pub struct Hit {
    /// The document.
    pub document: Document,
    /// How well it matches.
    pub score: f64,
    /// The snippets that match, by field.
    pub highlights: Vec<(String, Vec<String>)>,
}

/// How far an index is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// There is no such index.
    Missing,
    /// It is new, and begins with whatever comes.
    No,
    /// It is filled from this event of the stream on; 1 is the beginning.
    Since(u64),
}

/// The index of todos.
#[derive(Debug, Clone)]
pub struct Index {
    clients: Reread<OpenSearch>,
    alias: String,
    refresh: Duration,
}

/// Parses the address of an OpenSearch, which may hold a password.
///
/// # Errors
/// The text is no address.
pub fn address(text: &str) -> Result<Secret, String> {
    Secret::given(text, |text| Ok(Url::parse(text).map(drop)?))
}

impl Index {
    /// The index behind `alias` of the cluster at `url`, which a process asks for. Sends no request yet.
    ///
    /// # Errors
    /// The address, or the file of the authorities, cannot be read.
    pub fn new(process: &Process, url: &Secret, alias: &str, refresh: Duration) -> Result<Self, anyhow::Error> {
        let client = |url: &[u8], authorities: Option<&[u8]>| {
            let url = Url::parse(secret::text(url)?.expose_secret())?;
            let pool = SingleNodeConnectionPool::new(url);
            let mut transport = TransportBuilder::new(pool).timeout(TIMEOUT).disable_proxy();
            if let Some(authorities) = authorities {
                transport = transport.cert_validation(CertificateValidation::Full(Certificate::from_pem(authorities)?));
            }
            Ok(OpenSearch::new(transport.build()?))
        };
        let clients = process.authorities.reread(&process.lifecycle, url.source(), client)?;
        Ok(Self { clients, alias: alias.to_owned(), refresh })
    }

    pub(crate) fn client(&self) -> Arc<OpenSearch> {
        self.clients.get()
    }

    /// Its alias.
    #[must_use]
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// The same cluster behind another alias.
    #[must_use]
    pub fn behind(&self, alias: &str) -> Self {
        Self { alias: alias.to_owned(), ..self.clone() }
    }

    /// Makes the index if there is none.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable or refuses it.
    pub async fn ensure(&self) -> Result<(), anyhow::Error> {
        let client = self.client();
        let indices = client.indices();
        let exists = indices.exists_alias(IndicesExistsAliasParts::Name(&[&self.alias])).send().await?;
        match exists.status_code() {
            StatusCode::OK => return Ok(()),
            StatusCode::NOT_FOUND => {}
            other => bail!("OpenSearch does not say whether there is an index: {other}"),
        }
        let mut definition = self.definition();
        definition["aliases"] = json!({&self.alias: {"is_write_index": true}});
        // An index from before a rebuild may have the first name.
        let names = [format!("{}-v1", self.alias), format!("{}-{}", self.alias, clock::now().format("%Y%m%d%H%M%S"))];
        let mut name = String::new();
        for candidate in names {
            let response =
                indices.create(IndicesCreateParts::Index(&candidate)).body(definition.clone()).send().await?;
            let status = response.status_code();
            let answer: Value = response.json().await?;
            if status.is_success() {
                name = candidate;
                break;
            }
            if answer["error"]["type"] != "resource_already_exists_exception" {
                bail!("OpenSearch does not make the index {candidate}: {status} {}", answer["error"]["reason"]);
            }
            // Another process was faster.
            let exists = indices.exists_alias(IndicesExistsAliasParts::Name(&[&self.alias])).send().await?;
            if exists.status_code() == StatusCode::OK {
                return Ok(());
            }
        }
        if name.is_empty() {
            bail!("no index can be made behind {}: its names are taken", self.alias);
        }
        info!(index = name, alias = self.alias, "the index is there");
        Ok(())
    }

    /// Like [`Self::ask`], but fails unless OpenSearch succeeds; returns the answer.
    pub(crate) async fn demand(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, anyhow::Error> {
        let response = self.ask(method, path, body).await?;
        let status = response.status_code();
        let answer: Value = response.json().await.context("reading an answer of OpenSearch")?;
        if !status.is_success() {
            bail!("OpenSearch answers {path} with {status}: {}", answer["error"]["reason"]);
        }
        Ok(answer)
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Response, anyhow::Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = body.map(|body| Bytes::from(body.to_string()));
        Ok(self.client().transport().send(method, path, headers, None::<&()>, body, Some(TIMEOUT)).await?)
    }

    /// The settings and the mapping of an index in this version of the service.
    #[must_use]
    pub fn definition(&self) -> Value {
        let words = json!({"type": "text", "analyzer": "folded"});
        let mut text = words.clone();
        text["fields"] = json!({"raw": {"type": "keyword", "ignore_above": 2_100}});
        json!({
            "settings": {
                "number_of_shards": 1,
                "number_of_replicas": 0,
                "refresh_interval": format!("{}ms", self.refresh.as_millis()),
                // Otherwise each refresh waits for the merge of small segments that it starts. Only a new index takes this setting.
                "merge_on_flush.enabled": false,
                // A search for "cafe" finds "Café".
                "analysis": {"analyzer": {"folded": {
                    "type": "custom", "tokenizer": "standard", "filter": ["lowercase", "asciifolding"],
                }}},
            },
            "mappings": {
                "dynamic": "strict",
                "_routing": {"required": true},
                "properties": {
                    "tenant": {"type": "keyword"},
                    "id": {"type": "keyword"},
                    "version": {"type": "integer"},
                    "deleted": {"type": "boolean"},
                    "index_time": {"type": "date"},
                    "title": text,
                    "notes": words,
                    "labels": text,
                    "status": {"type": "keyword"},
                    "assignee": {"type": "keyword"},
                    "due_time": {"type": "date"},
                    "create_time": {"type": "date"},
                    "update_time": {"type": "date"},
                    "complete_time": {"type": "date"},
                    "created_by": {"type": "keyword"},
                },
            },
        })
    }

    /// Whether a search shows this version of a document, or a newer one.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn shows(&self, id: &str, version: i32) -> Result<bool, anyhow::Error> {
        let query = json!({"size": 0, "query": {"bool": {"filter": [
            {"term": {"id": id}}, {"range": {"version": {"gte": version}}},
        ]}}});
        let answer: Value =
            self.client().search(SearchParts::Index(&[&self.alias])).body(query).send().await?.json().await?;
        Ok(answer["hits"]["total"]["value"].as_u64() == Some(1))
    }

    /// Searches the todos of one tenant; returns the hits, and how many there are in all.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable or does not answer in time.
    #[instrument(target = "service::trace", name = "search", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "opensearch", db.operation.name = "search"))]
    pub async fn search(&self, tenant: &TenantId, question: &Question) -> Result<(Vec<Hit>, u64), anyhow::Error> {
        // Nobody waits for what is found later.
        let within =
            service::notes::left().map_or(SEARCHES_WITHIN, |left| (left + deadline::AFTER).min(SEARCHES_WITHIN));
        let response = self
            .client()
            .search(SearchParts::Index(&[&self.alias]))
            .routing(&[tenant.as_str()])
            .request_timeout(within + ANSWERS_WITHIN)
            .body(search_body(tenant, question, within))
            .send()
            .await?;
        let status = response.status_code();
        if !status.is_success() {
            bail!("OpenSearch answers a search with {status}: {}", refusal(response).await);
        }
        let mut answer: Value = response.json().await.context("reading the answer to a search")?;
        if answer["timed_out"] == true {
            bail!("the search took too long");
        }
        let total = answer["hits"]["total"]["value"].as_u64().unwrap_or_default();
        let hits = answer["hits"]["hits"].take();
        let hits: Vec<RawHit> = serde_json::from_value(hits).context("reading the hits of a search")?;
        Ok((hits.into_iter().map(Into::into).collect(), total))
    }
}

/// The only function that makes a query: the tenant is its first filter.
///
/// A hit's score is a sum of constants: it depends on the todo and the question alone. OpenSearch's own score counts how often
/// words occur in all documents: a tenant would see others write, and pages would shift under their reader.
/// Among equal scores the newest todo is first, so that new todos come before the page that is read.
fn search_body(tenant: &TenantId, question: &Question, within: Duration) -> Value {
    let mut filter = vec![json!({"term": {"tenant": tenant}}), json!({"term": {"deleted": false}})];
    if let Some(status) = question.status {
        filter.push(json!({"term": {"status": status}}));
    }
    if let Some(label) = &question.label {
        filter.push(json!({"term": {"labels.raw": label}}));
    }
    let words = &question.words;
    let mut rules = vec![json!({"match_all": {"boost": 1}})];
    if !words.is_empty() {
        // Match all words, in any field. The whole title matches too, even one without a single word in it.
        filter.push(json!({"bool": {"minimum_should_match": 1, "should": [
            {"multi_match": {
                "query": words, "type": "cross_fields", "operator": "and", "fields": ["title", "labels", "notes"],
            }},
            {"term": {"title.raw": words}},
        ]}}));
        let rule = |filter: Value, boost: u8| json!({"constant_score": {"filter": filter, "boost": boost}});
        rules.extend([
            rule(json!({"term": {"title.raw": words}}), 16),
            rule(json!({"match_phrase": {"title": words}}), 8),
            rule(json!({"match": {"title": {"query": words, "operator": "and"}}}), 4),
            rule(json!({"match": {"title": words}}), 2),
            rule(json!({"match": {"labels": words}}), 1),
        ]);
    }
    // The unified highlighter ends a snippet where a sentence ends, and some texts have none.
    let field = json!({"type": "plain", "fragmenter": "simple", "number_of_fragments": 3, "fragment_size": 150});
    let mut body = json!({
        "size": question.limit,
        "timeout": format!("{}ms", within.as_millis().max(1)),
        "query": {"bool": {"filter": filter, "should": rules, "minimum_should_match": 1}},
        "sort": [{"_score": "desc"}, {"id": "desc"}],
        "track_scores": true,
        "highlight": {
            "encoder": "html", "require_field_match": false,
            "highlight_query": {"multi_match": {"query": words, "fields": ["title", "labels", "notes"]}},
            "fields": {"title": field, "notes": field, "labels": field},
        },
    });
    if let Some((score, id)) = &question.after {
        body["search_after"] = json!([score, id]);
    }
    body
}

#[derive(Deserialize)]
struct RawHit {
    #[serde(rename = "_source")]
    source: Document,
    #[serde(rename = "_score")]
    score: Option<f64>,
    #[serde(default)]
    highlight: std::collections::BTreeMap<String, Vec<String>>,
}

impl From<RawHit> for Hit {
    fn from(raw: RawHit) -> Self {
        Self {
            document: raw.source,
            score: raw.score.unwrap_or_default(),
            highlights: raw.highlight.into_iter().collect(),
        }
    }
}

/// The kind of a refusal. OpenSearch's text may quote what was sent; that of a proxy before it does not.
pub(crate) async fn refusal(response: Response) -> String {
    let said = response.text().await.unwrap_or_default();
    match serde_json::from_str::<Value>(&said) {
        Ok(answer) => answer["error"]["type"].as_str().unwrap_or("it does not say why").to_owned(),
        Err(_) => without_quotations(&said.chars().take(200).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_query_leaves_the_tenant_out() {
        let tenant: TenantId = "acme".parse().unwrap();
        for question in [
            Question::default(),
            Question { words: "a OR tenant:other".to_owned(), ..Question::default() },
            Question { label: Some("x".to_owned()), status: Some(Status::Open), ..Question::default() },
        ] {
            let body = search_body(&tenant, &question, SEARCHES_WITHIN);
            assert_eq!(body["query"]["bool"]["filter"][0], json!({"term": {"tenant": "acme"}}));
            assert_eq!(body["query"]["bool"]["filter"][1], json!({"term": {"deleted": false}}));
            let scoring = body["query"]["bool"]["should"].as_array().unwrap();
            let constant = |rule: &Value| rule.get("constant_score").or(rule.get("match_all")).is_some();
            assert!(scoring.iter().all(constant), "a score that others have a part in: {scoring:?}");
        }
    }

    #[test]
    fn a_tombstone_keeps_nothing_that_was_written() {
        let todo = serde_json::from_value(json!({
            "id": "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f", "title": "secret", "notes": "secret", "status": "OPEN",
            "labels": ["secret"], "create_time": "2026-01-01T00:00:00Z", "update_time": "2026-01-01T00:00:00Z",
            "created_by": "ann", "version": 2,
        }))
        .unwrap();
        let document = Document::new("acme".parse().unwrap(), &todo, true, DateTime::UNIX_EPOCH);
        let text = serde_json::to_string(&document).unwrap();
        assert!(!text.contains("secret") && text.contains("\"deleted\":true"), "{text}");
    }
}
