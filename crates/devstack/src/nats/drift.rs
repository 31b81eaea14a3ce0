//! What is configured now, and what a release changes of it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use serde::Serialize;
use serde_json::Value;

use super::administration::Administration;
use crate::stack_dir::StackDir;

/// The configuration of each stream (`STREAM`) and durable consumer (`STREAM/durable`), as NATS has it.
pub type Configurations = BTreeMap<String, Value>;

/// A difference between two of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// `STREAM` or `STREAM/durable`.
    pub name: String,
    /// The setting; None: all of it is new.
    pub setting: Option<String>,
    /// What it was.
    pub before: Value,
    /// What it is.
    pub after: Value,
}

/// All that the accounts of owners have.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn configurations(home: &StackDir, address: &str) -> Result<Configurations, anyhow::Error> {
    let mut all = Configurations::new();
    for owner in fleet::owners() {
        let js = Administration::connect(home, address, &owner).await?.js;
        let mut streams = js.streams();
        while let Some(stream) = streams.try_next().await.context("listing the streams")? {
            let name = stream.config.name.clone();
            let mut consumers = js.get_stream(&name).await?.consumers();
            while let Some(consumer) = consumers.try_next().await.context("listing the durable consumers")? {
                all.insert(format!("{name}/{}", consumer.name), serde_json::to_value(&consumer.config)?);
            }
            all.insert(name, serde_json::to_value(&stream.config)?);
        }
    }
    Ok(all)
}

/// What is new, and each setting that changed.
#[must_use]
pub fn changes(before: &Configurations, after: &Configurations) -> Vec<Change> {
    let mut all = Vec::new();
    for (name, now) in after {
        let Some(was) = before.get(name) else {
            all.push(Change { name: name.clone(), setting: None, before: Value::Null, after: now.clone() });
            continue;
        };
        let settings = [was, now].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys());
        let settings: BTreeSet<_> = settings.collect();
        for setting in settings.into_iter().filter(|setting| was[setting.as_str()] != now[setting.as_str()]) {
            let [before, after] = [was, now].map(|of| of[setting.as_str()].clone());
            all.push(Change { name: name.clone(), setting: Some(setting.clone()), before, after });
        }
    }
    all
}
