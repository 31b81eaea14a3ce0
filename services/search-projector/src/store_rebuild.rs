//! All requests of a rebuild: an index beside the one that is searched, and the swap.

use opensearch::http::Method;
use serde_json::{Value, json};
use tracing::instrument;

use crate::rebuilt;
use crate::store::Index;

/// The source from which a rebuild gets what came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Every event of the stream, from the first.
    Stream,
    /// The rows of the database, and every event from a noted one on.
    Database,
}

impl Source {
    /// Its name in the notes of the index.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Database => "database",
        }
    }
}

impl Index {
    /// The index that is being rebuilt for this one.
    #[must_use]
    pub fn next(&self) -> Self {
        self.behind(&rebuilt(self.alias()))
    }

    /// The index that was searched before the last swap.
    #[must_use]
    pub fn previous(&self) -> Self {
        self.behind(&format!("{}-previous", self.alias()))
    }

    /// Makes an index of this name behind this alias, with the mapping of this version.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable or refuses it.
    pub async fn create(&self, name: &str, notes: &Value) -> Result<(), anyhow::Error> {
        let mut definition = self.definition();
        definition["aliases"] = json!({self.alias(): {"is_write_index": true}});
        definition["mappings"]["_meta"] = notes.clone();
        self.demand(Method::Put, &format!("/{name}"), Some(definition)).await.map(drop)
    }

    /// Notes something in an index.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn note(&self, name: &str, notes: &Value) -> Result<(), anyhow::Error> {
        self.demand(Method::Put, &format!("/{name}/_mapping"), Some(json!({"_meta": notes}))).await.map(drop)
    }

    /// Adds this alias to an index.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn point_to(&self, name: &str) -> Result<(), anyhow::Error> {
        let add = json!({"add": {"index": name, "alias": self.alias(), "is_write_index": true}});
        self.demand(Method::Post, "/_aliases", Some(json!({"actions": [add]}))).await.map(drop)
    }

    /// Makes all writes visible to searches.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn refresh(&self) -> Result<(), anyhow::Error> {
        self.demand(Method::Post, &format!("/{}/_refresh", self.alias()), None).await.map(drop)
    }

    /// Swaps in one step, so that no search sees anything in between. `to`, which was rebuilt, is searched and written; `from` is
    /// the previous index, if there was one. The former previous index is removed.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable or refuses it; then nothing has changed.
    #[instrument(target = "service::trace", skip_all, err(level = "debug"))]
    pub async fn swap(&self, from: Option<&str>, to: &str) -> Result<(), anyhow::Error> {
        let (alias, next, previous) = (self.alias(), self.next(), self.previous());
        let older = previous.named().await?.map(|(name, _)| name);
        let mut actions = vec![
            json!({"add": {"index": to, "alias": alias, "is_write_index": true}}),
            json!({"remove": {"index": to, "alias": next.alias()}}),
        ];
        if let Some(from) = from {
            actions.push(json!({"remove": {"index": from, "alias": alias}}));
            actions.push(json!({"add": {"index": from, "alias": previous.alias(), "is_write_index": true}}));
        }
        match &older {
            Some(older) if older == to => actions.push(json!({"remove": {"index": to, "alias": previous.alias()}})),
            Some(older) if from.is_some() => actions.push(json!({"remove_index": {"index": older}})),
            Some(_) | None => {}
        }
        self.demand(Method::Post, "/_aliases", Some(json!({"actions": actions}))).await.map(drop)
    }

    /// Gives up an index that is being rebuilt.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn remove(&self, name: &str) -> Result<(), anyhow::Error> {
        self.demand(Method::Delete, &format!("/{name}"), None).await.map(drop)
    }

    /// Removes this alias from an index, which stays.
    ///
    /// # Errors
    /// Fails when OpenSearch is unavailable.
    pub async fn let_go(&self, name: &str) -> Result<(), anyhow::Error> {
        let remove = json!({"remove": {"index": name, "alias": self.alias()}});
        self.demand(Method::Post, "/_aliases", Some(json!({"actions": [remove]}))).await.map(drop)
    }
}
