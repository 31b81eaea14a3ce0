//! Queries that compare the index with its source.

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, Utc};
use opensearch::http::Method;
use serde_json::{Value, json};

use crate::store::{Document, Index};

/// Selects a page of documents.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The id and tenant to continue behind.
    pub after: Option<(String, String)>,
    /// The tenant.
    pub tenant: Option<String>,
    /// Only todos that were changed at or after this.
    pub from: Option<DateTime<Utc>>,
    /// Only todos that were changed before this.
    pub to: Option<DateTime<Utc>>,
    /// The most documents.
    pub limit: i64,
}

impl Index {
    /// A page of documents by id and tenant; returns those two of each.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable, or there is no such index.
    pub async fn page(&self, page: &Page) -> Result<Vec<(String, String)>, anyhow::Error> {
        let Page { after, tenant, from, to, limit } = page;
        let mut filter = Vec::new();
        if let Some(tenant) = tenant {
            filter.push(json!({"term": {"tenant": tenant}}));
        }
        if from.is_some() || to.is_some() {
            filter.push(json!({"range": {"update_time": {"gte": from, "lt": to}}}));
        }
        let mut body = json!({
            "size": limit, "query": {"bool": {"filter": filter}}, "sort": [{"id": "asc"}, {"tenant": "asc"}],
            "_source": ["tenant", "id"], "track_total_hits": false,
        });
        if let Some((id, tenant)) = after {
            // A document without the field sorts last, under null.
            let sorted = |text: &String| if text.is_empty() { Value::Null } else { json!(text) };
            body["search_after"] = json!([sorted(id), sorted(tenant)]);
        }
        let answer = self.demand(Method::Post, &format!("/{}/_search", self.alias()), Some(body)).await?;
        let hits = answer["hits"]["hits"].as_array().cloned().unwrap_or_default();
        let text = |hit: &Value, name: &str| hit["_source"][name].as_str().unwrap_or_default().to_owned();
        Ok(hits.iter().map(|hit| (text(hit, "id"), text(hit, "tenant"))).collect())
    }

    /// The documents of these ids and tenants as written, even before a search shows them.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable, there is no such index, or a document cannot be read.
    pub async fn get(&self, keys: &[(String, String)]) -> Result<Vec<Option<Document>>, anyhow::Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let docs: Vec<Value> = keys.iter().map(|(id, tenant)| json!({"_id": id, "routing": tenant})).collect();
        let answer =
            self.demand(Method::Post, &format!("/{}/_mget", self.alias()), Some(json!({"docs": docs}))).await?;
        let docs = answer["docs"].as_array().context("OpenSearch gave no documents")?;
        ensure!(docs.len() == keys.len(), "OpenSearch gave {} of {} documents", docs.len(), keys.len());
        docs.iter()
            .map(|doc| match doc["found"] == true {
                true => serde_json::from_value(doc["_source"].clone()).map(Some).context("reading a document"),
                false if doc["error"].is_null() => Ok(None),
                false => bail!("OpenSearch does not give a document: {}", doc["error"]["reason"]),
            })
            .collect()
    }
}
