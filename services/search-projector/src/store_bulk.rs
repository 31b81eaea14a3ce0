//! Writes documents in bulks that are bounded in bytes, and splits a bulk that is refused as a whole.

use std::io::Write as _;
use std::ops::Range;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use contracts::text::without_quotations;
use opensearch::http::Method;
use opensearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use tracing::{instrument, warn};

use crate::store::{Document, Index, TIMEOUT, refusal};

/// The most bytes in one bulk, unless one document alone is larger. Managed clusters take 10 MiB.
const BULK_BYTES: usize = 8 << 20;

/// The outcome of one document of a bulk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the index.
    Written,
    /// The index has this version, or a newer one.
    Newer,
    /// The index takes nothing now, neither this document nor others: it is full, blocked, closed or unavailable.
    Away(String),
    /// The index may take the document later.
    Busy(String),
    /// The index never takes the document.
    Refused(String),
}

/// Why a bulk was refused as a whole.
struct Refusal {
    reason: String,
    too_large: bool,
}

impl Refusal {
    /// The outcome for a document that was alone. A size is the document's own fault. Any other error may come from a proxy before
    /// OpenSearch, and is tried again.
    fn of_one(self) -> Outcome {
        if self.too_large { Outcome::Refused(self.reason) } else { Outcome::Busy(self.reason) }
    }
}

impl Index {
    /// Writes documents, as many in one bulk as may go together; returns an outcome each, in order. When OpenSearch, or a proxy before
    /// it, refuses a bulk as a whole, the bulk goes in halves, down to the document at fault.
    ///
    /// # Errors
    /// Fails when the index takes nothing now: then no outcome is known.
    #[instrument(target = "service::trace", name = "bulk", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "opensearch", db.operation.name = "bulk", db.operation.batch.size = documents.len()))]
    pub async fn write(&self, documents: &[&Document]) -> Result<Vec<Outcome>, anyhow::Error> {
        let (body, ends) = bulk_body(documents)?;
        let mut outcomes = Vec::with_capacity(documents.len());
        let mut index_answers = false;
        // Put the next one last: `pop` takes that.
        let mut parts = bulks(&ends);
        parts.reverse();
        while let Some(part) = parts.pop() {
            let from = part.start.checked_sub(1).map_or(0, |before| ends[before]);
            match self.bulk(body.slice(from..ends[part.end - 1]), part.len()).await? {
                Ok(written) => outcomes.extend(written),
                Err(refusal) if part.len() == 1 => {
                    // A proxy before OpenSearch may refuse everything: that is no document's fault.
                    index_answers = index_answers || self.answers().await;
                    anyhow::ensure!(index_answers, "{}", refusal.reason);
                    outcomes.push(refusal.of_one());
                }
                Err(Refusal { reason, .. }) => {
                    warn!(documents = part.len(), reason, "a bulk is refused as a whole: sending it in halves");
                    let middle = part.start + part.len() / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
            }
        }
        Ok(outcomes)
    }

    /// Whether the index answers requests.
    async fn answers(&self) -> bool {
        let path = format!("/_alias/{}", self.alias());
        self.ask(Method::Head, &path, None).await.is_ok_and(|answer| answer.status_code().is_success())
    }

    /// Sends one bulk; returns an outcome for each document, or why the bulk was refused as a whole.
    async fn bulk(&self, body: Bytes, documents: usize) -> Result<Result<Vec<Outcome>, Refusal>, anyhow::Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        let path = format!("/{}/_bulk", self.alias());
        let query = [("require_alias", "true"), ("filter_path", "errors,items.*.status,items.*.error")];
        let client = self.client();
        let transport = client.transport();
        let response = transport.send(Method::Post, &path, headers, Some(&query), Some(body), Some(TIMEOUT)).await?;
        let status = response.status_code();
        if !status.is_success() {
            let reason = format!("OpenSearch answers a bulk with {status}: {}", refusal(response).await);
            // The fault is that of one of the documents, or of their number.
            return match status.as_u16() {
                413 => Ok(Err(Refusal { reason, too_large: true })),
                400 | 422 => Ok(Err(Refusal { reason, too_large: false })),
                _ => bail!(reason),
            };
        }
        let answer: BulkAnswer = response.json().await.context("reading the answer to a bulk")?;
        if answer.items.len() != documents {
            bail!("OpenSearch gave no verdict for each document of a bulk");
        }
        Ok(Ok(answer.items.into_iter().map(|item| outcome(item.index)).collect()))
    }
}

/// The lines of a bulk, and the offsets where those of each document end.
fn bulk_body(documents: &[&Document]) -> Result<(Bytes, Vec<usize>), anyhow::Error> {
    let mut body = Vec::with_capacity(documents.len() * 600);
    let mut ends = Vec::with_capacity(documents.len());
    for document in documents {
        // No id and no tenant holds what JSON would escape.
        let Document { id, tenant, version, .. } = document;
        writeln!(
            body,
            r#"{{"index":{{"_id":"{id}","routing":"{tenant}","version":{version},"version_type":"external"}}}}"#
        )?;
        serde_json::to_writer(&mut body, document)?;
        body.push(b'\n');
        ends.push(body.len());
    }
    Ok((Bytes::from(body), ends))
}

/// Which documents share a bulk, by the offset where each one's lines end.
fn bulks(ends: &[usize]) -> Vec<Range<usize>> {
    let mut bulks: Vec<Range<usize>> = Vec::new();
    let mut from = 0;
    for (index, end) in ends.iter().enumerate() {
        match bulks.last_mut() {
            Some(bulk) if end - from <= BULK_BYTES => bulk.end = index + 1,
            _ => {
                from = index.checked_sub(1).map_or(0, |before| ends[before]);
                bulks.push(index..index + 1);
            }
        }
    }
    bulks
}

#[derive(Deserialize)]
struct BulkAnswer {
    items: Vec<BulkItem>,
}

#[derive(Deserialize)]
struct BulkItem {
    index: ItemResult,
}

#[derive(Deserialize)]
struct ItemResult {
    status: u16,
    error: Option<Value>,
}

fn outcome(item: ItemResult) -> Outcome {
    let error = item.error.unwrap_or_default();
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    let why = || format!("{}: {}: {}", item.status, text("type"), without_quotations(&text("reason")));
    match item.status {
        200 | 201 => Outcome::Written,
        409 => Outcome::Newer,
        400 if why().contains("index_closed_exception") => Outcome::Away(why()),
        // The mapping lacks a field that this release writes: that is no fault of the event.
        400 if text("type") == "strict_dynamic_mapping_exception" => Outcome::Away(why()),
        400 => Outcome::Refused(why()),
        // A block (disk nearly full), no index, a full queue, no shard.
        403 | 404 | 429 | 503 => Outcome::Away(why()),
        _ => Outcome::Busy(why()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_status_of_a_bulk_item_has_its_outcome() {
        let item = |status| outcome(ItemResult { status, error: Some(json!({"type": "t", "reason": "r"})) });
        assert_eq!(item(200), Outcome::Written);
        assert_eq!(item(201), Outcome::Written);
        assert_eq!(item(409), Outcome::Newer);
        assert!(matches!(item(400), Outcome::Refused(_)));
        let closed = Some(json!({"type": "index_closed_exception", "reason": "closed"}));
        assert!(matches!(outcome(ItemResult { status: 400, error: closed }), Outcome::Away(_)));
        // An index of an older release lacks the field at first, and gets it a moment later.
        let strict = Some(json!({"type": "strict_dynamic_mapping_exception", "reason": "not allowed"}));
        assert!(matches!(outcome(ItemResult { status: 400, error: strict }), Outcome::Away(_)));
        for away in [403, 404, 429, 503] {
            assert!(matches!(item(away), Outcome::Away(_)), "{away}");
        }
        assert!(matches!(item(500), Outcome::Busy(_)));
    }

    #[test]
    fn a_bulk_holds_what_fits_and_always_one_document() {
        let most = BULK_BYTES;
        assert!(bulks(&[]).is_empty());
        assert_eq!(bulks(&[most / 2, most, most + 1]), [0..2, 2..3]);
        assert_eq!(bulks(&[2 * most, 4 * most, 4 * most + 1, 4 * most + 2]), [0..1, 1..2, 2..4]);
    }
}
