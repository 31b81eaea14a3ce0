//! The mapping of an index: the fields that it takes, and the notes beside them.

use opensearch::http::{Method, StatusCode};
use serde_json::{Value, json};
use tracing::info;

use crate::store::{Filled, Index};

impl Index {
    /// How far the index behind the alias is filled.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn filled(&self) -> Result<Filled, anyhow::Error> {
        let notes = self.named().await?.map(|(_, notes)| notes["filled_since"].as_u64());
        Ok(notes.map_or(Filled::Missing, |since| since.map_or(Filled::No, Filled::Since)))
    }

    /// The name of the index behind the alias, and its notes; none when there is no index.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn named(&self) -> Result<Option<(String, Value)>, anyhow::Error> {
        let response = self.ask(Method::Get, &format!("/{}/_mapping", self.alias()), None).await?;
        if response.status_code() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer: Value = response.error_for_status_code()?.json().await?;
        let first = answer.as_object().and_then(|indices| indices.iter().next());
        Ok(first.map(|(name, index)| (name.clone(), index["mappings"]["_meta"].clone())))
    }

    /// Adds notes to those of an index.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn note_beside(&self, name: &str, notes: &Value, more: &Value) -> Result<(), anyhow::Error> {
        let mut all = notes.as_object().cloned().unwrap_or_default();
        all.extend(more.as_object().cloned().unwrap_or_default());
        self.note(name, &Value::Object(all)).await
    }

    /// Adds the fields that this release writes to the index behind this alias, to that of its rebuild, and to the previous one.
    /// Returns in words which fields they do not take, and which `searched`, the index behind this alias, analyzes otherwise.
    /// An index takes new fields at any time; any other change needs a rebuild.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn add_fields(&self, searched: &str) -> Result<Vec<String>, anyhow::Error> {
        let (next, previous) = (self.next(), self.previous());
        let path = format!("/{},{},{}/_mapping?ignore_unavailable=true", self.alias(), next.alias(), previous.alias());
        let response = self.ask(Method::Get, &path, None).await?;
        if response.status_code() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        let answer: Value = response.error_for_status_code()?.json().await?;
        let wanted = self.definition()["mappings"]["properties"].take();
        let mut behind = Vec::new();
        for (name, index) in answer.as_object().into_iter().flatten() {
            let has = &index["mappings"]["properties"];
            for (field, definition) in wanted.as_object().into_iter().flatten() {
                if !has[field].is_null() {
                    // For the index before the last swap only the types count: nobody searches it.
                    let counts: &[&str] = if searched == name { &["type", "analyzer"] } else { &["type"] };
                    if let Some(what) = counts.iter().find(|what| has[field][*what] != definition[*what]) {
                        behind.push(format!("{name} has {} as the {what} of {field}", has[field][*what]));
                    }
                    continue;
                }
                let body = json!({"properties": {field: definition}});
                let added = self.ask(Method::Put, &format!("/{name}/_mapping"), Some(body)).await?;
                if added.status_code().is_success() {
                    info!(index = name, field, "the index has a field more");
                } else {
                    behind.push(format!("{name} does not take {field} ({})", added.status_code()));
                }
            }
        }
        Ok(behind)
    }
}
