//! What a repository has, and which of it leads to a moment.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::repository::Repository;

/// A base backup of PostgreSQL.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Base {
    /// What pgBackRest calls it.
    pub label: String,
    /// Whether it has every file, or what changed since another.
    pub full: bool,
    /// When it began.
    pub began: DateTime<Utc>,
    /// When it ended. It leads to every later moment.
    pub ended: DateTime<Utc>,
    /// What it takes in the repository, in bytes; of an incremental one without what it refers to.
    pub bytes: u64,
}

/// A stream in a set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Its name.
    pub name: String,
    /// How many messages it had.
    pub messages: u64,
    /// The sequence of its newest message.
    pub last_sequence: u64,
    /// How many durable consumers it had.
    pub consumers: usize,
    /// The size of the file, in bytes.
    pub bytes: u64,
}

/// A set of streams.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamSet {
    /// Its folder in the repository.
    pub label: String,
    /// When it began.
    pub began: DateTime<Utc>,
    /// When it ended: it holds no later event.
    pub ended: DateTime<Utc>,
    /// Each stream.
    pub streams: Vec<Saved>,
    /// The names of the secrets that the fleet had; they are kept elsewhere.
    pub secrets: Vec<String>,
}

/// A restore that was done. What was written between its two moments is on no path from here.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct PastRestore {
    /// The moment to which everything went back.
    pub to: DateTime<Utc>,
    /// When that was done.
    pub at: DateTime<Utc>,
    /// The timeline of PostgreSQL's log that began then.
    pub timeline: u32,
}

/// All backups of a repository.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sets {
    /// Of PostgreSQL, the oldest first.
    pub bases: Vec<Base>,
    /// Of JetStream, the oldest first.
    pub streams: Vec<StreamSet>,
    /// The restores from it, the oldest first.
    pub restores: Vec<PastRestore>,
}

impl Base {
    /// Reads what `pgbackrest info` prints.
    pub(super) fn all(json: &str) -> Result<Vec<Self>, anyhow::Error> {
        // Its messages have ends of lines as they are.
        let json: String = json.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect();
        let info: Value = serde_json::from_str(&json).context("reading what pgbackrest says of its backups")?;
        // 1 to 3: there is none yet.
        if info[0]["status"]["code"].as_u64() > Some(3) {
            let why = &info[0]["repo"][0]["status"]["message"];
            bail!("the backups cannot be read; is this key theirs? pgbackrest: {}", why.as_str().unwrap_or_default());
        }
        let mut bases = Vec::new();
        for backup in info[0]["backup"].as_array().into_iter().flatten().filter(|backup| backup["error"] != true) {
            let seconds = |what: &str| backup["timestamp"][what].as_i64().and_then(|s| DateTime::from_timestamp(s, 0));
            bases.push(Self {
                label: backup["label"].as_str().context("a backup without a label")?.to_owned(),
                full: backup["type"] == "full",
                began: seconds("start").context("a backup without its beginning")?,
                // It is told in whole seconds.
                ended: seconds("stop").context("a backup without its end")? + chrono::TimeDelta::seconds(1),
                bytes: backup["info"]["repository"]["delta"].as_u64().unwrap_or_default(),
            });
        }
        Ok(bases)
    }
}

impl Sets {
    /// The newest base backup from which the log leads to the moment.
    #[must_use]
    pub fn base(&self, to: DateTime<Utc>) -> Option<&Base> {
        self.bases.iter().rev().find(|base| base.ended <= to && !self.is_undone(base.began, base.ended))
    }

    /// The newest set of streams without an event from behind the moment.
    #[must_use]
    pub fn streams(&self, to: DateTime<Utc>) -> Option<&StreamSet> {
        self.streams.iter().rev().find(|set| set.ended <= to && !self.is_undone(set.began, set.ended))
    }

    /// The restore that undid this moment, if one did.
    #[must_use]
    pub fn undone(&self, moment: DateTime<Utc>) -> Option<&PastRestore> {
        self.restores.iter().find(|restore| restore.to < moment && moment < restore.at)
    }

    /// The timeline that the moment is on; None for that of every base backup that leads there.
    #[must_use]
    pub fn timeline(&self, moment: DateTime<Utc>) -> Option<u32> {
        self.restores.iter().rev().find(|restore| restore.at <= moment).map(|restore| restore.timeline)
    }

    fn is_undone(&self, began: DateTime<Utc>, ended: DateTime<Utc>) -> bool {
        self.restores.iter().any(|restore| restore.to < ended && began < restore.at)
    }

    /// The sets of streams that no base backup needs any more.
    pub(super) fn expired(&self) -> Vec<&StreamSet> {
        let Some(oldest) = self.bases.first() else { return Vec::new() };
        // The newest before it serves the moments between the two.
        let older: Vec<&StreamSet> = self.streams.iter().filter(|set| set.ended <= oldest.ended).collect();
        older[..older.len().saturating_sub(1)].to_vec()
    }
}

impl Repository {
    /// Its sets of streams, and the restores from it. Those of PostgreSQL are [`Archive::bases`](super::Archive::bases).
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn sets(&self) -> Result<Sets, anyhow::Error> {
        let mut sets = Sets::default();
        for entry in std::fs::read_dir(self.path("streams")).context("reading the folder of backups")? {
            let manifest = entry?.path().join(MANIFEST);
            // One that was cut off has none.
            let Ok(json) = std::fs::read(&manifest) else { continue };
            let set = serde_json::from_slice(&json).with_context(|| format!("reading {}", manifest.display()))?;
            sets.streams.push(set);
        }
        sets.streams.sort_by_key(|set| set.ended);
        let restores = std::fs::read_to_string(self.path(RESTORES)).unwrap_or_default();
        for line in restores.lines() {
            sets.restores.push(serde_json::from_str(line).with_context(|| format!("reading {RESTORES}"))?);
        }
        Ok(sets)
    }

    /// Notes a restore.
    pub(super) fn restored(&self, restore: PastRestore) -> Result<(), anyhow::Error> {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.path(RESTORES))?;
        writeln!(file, "{}", serde_json::to_string(&restore)?)?;
        file.sync_all().context("noting the restore")
    }
}

/// What a finished set of streams has.
pub(super) const MANIFEST: &str = "manifest.json";
const RESTORES: &str = "restores.jsonl";

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    fn base(began: i64, ended: i64) -> Base {
        Base { label: format!("{began}"), full: true, began: at(began), ended: at(ended), bytes: 0 }
    }

    fn set(began: i64, ended: i64) -> StreamSet {
        let (streams, secrets) = (Vec::new(), Vec::new());
        StreamSet { label: format!("{began}"), began: at(began), ended: at(ended), streams, secrets }
    }

    #[test]
    fn a_moment_is_reached_from_what_ended_before_it_and_was_not_undone() {
        let mut sets = Sets {
            bases: vec![base(10, 12), base(20, 22), base(30, 32)],
            streams: vec![set(9, 10), set(19, 20), set(29, 30)],
            restores: Vec::new(),
        };
        let label = |base: Option<&Base>| base.map(|base| base.label.clone());
        assert_eq!(label(sets.base(at(11))), None, "it has not ended");
        assert_eq!(label(sets.base(at(12))).as_deref(), Some("10"));
        assert_eq!(label(sets.base(at(99))).as_deref(), Some("30"));
        assert_eq!(sets.streams(at(29)).unwrap().label, "19");

        // At 40 everything went back to 21: what was made between belongs to no history that goes on.
        sets.restores.push(PastRestore { to: at(21), at: at(40), timeline: 2 });
        assert!(sets.undone(at(25)).is_some() && sets.undone(at(21)).is_none() && sets.undone(at(40)).is_none());
        assert_eq!(label(sets.base(at(99))).as_deref(), Some("10"), "one ended behind 21, one began there");
        assert_eq!(sets.streams(at(99)).unwrap().label, "19");
        assert_eq!((sets.timeline(at(21)), sets.timeline(at(40))), (None, Some(2)));
        sets.bases.push(base(41, 42));
        assert_eq!(label(sets.base(at(99))).as_deref(), Some("41"));
    }

    #[test]
    fn streams_are_kept_for_as_long_as_a_base_backup_leads_from_them() {
        let streams = vec![set(1, 2), set(9, 10), set(19, 20)];
        let mut sets = Sets { bases: vec![base(10, 12)], streams, restores: Vec::new() };
        assert_eq!(sets.expired().iter().map(|set| set.label.as_str()).collect::<Vec<_>>(), ["1"]);
        sets.bases[0] = base(30, 31);
        assert_eq!(sets.expired().len(), 2);
        sets.bases.clear();
        assert!(sets.expired().is_empty(), "without one nothing is known");
    }
}
