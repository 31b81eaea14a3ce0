//! What a repository has, and which of it leads to a moment.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::repository::Repository;
use crate::stack_dir::sync_file;

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

/// What pgBackRest says of a repository.
pub(super) struct Info {
    /// The base backups, the oldest first.
    pub bases: Vec<Base>,
    /// The newest segment of the log.
    pub newest: Option<Segment>,
}

/// A segment of PostgreSQL's log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its timeline.
    pub timeline: u32,
    /// Its number in it, counted from the beginning of all.
    pub number: u64,
}

/// Reads what `pgbackrest info` prints.
pub(super) fn info(json: &str) -> Result<Info, anyhow::Error> {
    // Its messages have ends of lines as they are.
    let json: String = json.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect();
    let info: Value = serde_json::from_str(&json).context("reading what pgbackrest says of its backups")?;
    let info = &info[0];
    // 1 to 3: there is none yet.
    if info["status"]["code"].as_u64().is_some_and(|code| code > 3) {
        let why = info["repo"][0]["status"]["message"].as_str().unwrap_or_default();
        bail!("the backups cannot be read; is this key theirs? pgbackrest: {why}");
    }
    let mut bases = Vec::new();
    for backup in info["backup"].as_array().into_iter().flatten().filter(|backup| backup["error"] != true) {
        let seconds = |what: &str| backup["timestamp"][what].as_i64().and_then(|s| DateTime::from_timestamp(s, 0));
        bases.push(Base {
            label: backup["label"].as_str().context("a backup without a label")?.to_owned(),
            full: backup["type"] == "full",
            began: seconds("start").context("a backup without its beginning")?,
            // Whole seconds are named, and it may have ended within the next.
            ended: seconds("stop").context("a backup without its end")? + chrono::TimeDelta::seconds(1),
            bytes: backup["info"]["repository"]["delta"].as_u64().unwrap_or_default(),
        });
    }
    let newest = info["archive"].as_array().and_then(|archives| archives.last()?["max"].as_str());
    Ok(Info { bases, newest: newest.map(segment).transpose()? })
}

/// Reads a segment's name: eight hexadecimal digits each of the timeline, of 4 GiB, and of 16 MiB.
fn segment(name: &str) -> Result<Segment, anyhow::Error> {
    let digits = |at| u32::from_str_radix(name.get(at..at + 8).unwrap_or_default(), 16);
    let wrong = || format!("`{name}` is no segment of the log");
    let (timeline, high, low) =
        (digits(0).with_context(wrong)?, digits(8).with_context(wrong)?, digits(16).with_context(wrong)?);
    Ok(Segment { timeline, number: u64::from(high) * 256 + u64::from(low) })
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

    /// The first moment to which a restore leads.
    #[must_use]
    pub fn since(&self) -> Option<DateTime<Utc>> {
        self.bases.iter().find(|base| !self.is_undone(base.began, base.ended)).map(|base| base.ended)
    }

    /// How many full backups there may be, so that `keep` of them are on a path from here. `more` is whether another one is made.
    #[must_use]
    pub fn retention(&self, keep: u8, more: bool) -> usize {
        let mut on_path = usize::from(keep) - usize::from(more);
        let newest = self.bases.iter().rev().filter(|base| base.full).take_while(|base| {
            let counts = !self.is_undone(base.began, base.ended);
            let wanted = on_path > 0;
            on_path -= usize::from(counts && wanted);
            wanted
        });
        newest.count().max(usize::from(keep) - usize::from(more)) + usize::from(more)
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

    /// Leaves restores out of which nothing is archived: their fleets did not come up, or not for long enough. Returns the first.
    pub(super) fn without_archive(&mut self, newest: Option<&Segment>) -> Option<PastRestore> {
        let archived = newest.map_or(0, |newest| newest.timeline);
        let first = self.restores.iter().position(|restore| restore.timeline > archived)?;
        self.restores.drain(first..).next()
    }

    fn is_undone(&self, began: DateTime<Utc>, ended: DateTime<Utc>) -> bool {
        self.restores.iter().any(|restore| restore.to < ended && began < restore.at)
    }

    /// The sets of streams that no base backup needs any more.
    pub(super) fn expired(&self) -> Vec<&StreamSet> {
        let Some(oldest) = self.bases.first() else { return Vec::new() };
        // The newest before it serves the moments between the two.
        let serves = self.streams(oldest.ended).map(|set| &set.label);
        self.streams.iter().filter(|set| set.ended <= oldest.ended && Some(&set.label) != serves).collect()
    }
}

impl Repository {
    /// Its sets of streams, and the restores from it. Those of PostgreSQL are [`Archive::bases`](super::Archive::bases).
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn sets(&self) -> Result<Sets, anyhow::Error> {
        let mut sets = Sets::default();
        let folders = match std::fs::read_dir(self.path("streams")) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            folders => folders.context("reading the folder of backups")?.collect(),
        };
        for entry in folders {
            let folder = entry?.path();
            // One that was cut off has none.
            let Ok(json) = std::fs::read(folder.join(MANIFEST)) else { continue };
            match serde_json::from_slice::<StreamSet>(&json) {
                // Its name is that of its folder, whatever it says.
                Ok(set) => sets.streams.push(StreamSet { label: name(&folder), ..set }),
                Err(error) => eprintln!("{} is left out, for its {MANIFEST} cannot be read: {error}", folder.display()),
            }
        }
        sets.streams.sort_by_key(|set| set.ended);
        sets.restores = self.restores()?;
        Ok(sets)
    }

    fn restores(&self) -> Result<Vec<PastRestore>, anyhow::Error> {
        let lines = match std::fs::read_to_string(self.path(RESTORES)) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            // Without them nobody knows what was undone.
            lines => lines.with_context(|| format!("reading {RESTORES}"))?,
        };
        lines.lines().map(|line| serde_json::from_str(line).with_context(|| format!("reading {RESTORES}"))).collect()
    }

    /// Checks that a server's log is the one that this repository has. A restore that was noted, and killed before it was done, is
    /// forgotten.
    ///
    /// # Errors
    /// It is another one.
    pub fn check(&self, timeline: u32) -> Result<(), anyhow::Error> {
        let restores = self.restores()?;
        let of = |restore: Option<&PastRestore>| restore.map_or_else(|| self.began_with(), |restore| restore.timeline);
        if of(restores.last()) == timeline {
            return Ok(());
        }
        let before = restores.len().checked_sub(2).and_then(|index| restores.get(index));
        ensure!(
            !restores.is_empty() && of(before) == timeline,
            "the server is not the one that was restored last, but of before, or of another restore: begin another repository \
             (--anew --repository FOLDER)"
        );
        self.unrestored()
    }

    /// Notes a restore.
    pub(super) fn restored(&self, restore: PastRestore) -> Result<(), anyhow::Error> {
        let mut restores = self.restores()?;
        restores.push(restore);
        self.write(&restores)
    }

    /// Takes back what was noted last.
    pub(super) fn unrestored(&self) -> Result<(), anyhow::Error> {
        let mut restores = self.restores()?;
        restores.pop();
        self.write(&restores)
    }

    fn write(&self, restores: &[PastRestore]) -> Result<(), anyhow::Error> {
        let lines: Result<String, _> =
            restores.iter().map(|restore| serde_json::to_string(restore).map(|line| line + "\n")).collect();
        sync_file(&self.path(RESTORES), lines?.as_bytes()).context("noting the restore")
    }
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
        let archived = |timeline| Segment { timeline, number: 1 };
        assert!(sets.clone().without_archive(Some(&archived(2))).is_none());
        assert_eq!(sets.clone().without_archive(Some(&archived(1))).unwrap().to, at(21));
        sets.bases.push(base(41, 42));
        assert_eq!(label(sets.base(at(99))).as_deref(), Some("41"));
    }

    #[test]
    fn full_backups_that_were_undone_take_no_place_of_those_that_stay() {
        let mut sets = Sets { bases: vec![base(10, 12), base(20, 22), base(30, 32)], ..Sets::default() };
        assert_eq!((sets.retention(2, true), sets.retention(2, false), sets.retention(1, true)), (2, 2, 1));
        sets.restores.push(PastRestore { to: at(15), at: at(40), timeline: 2 });
        assert_eq!(sets.retention(2, true), 4, "the new one, two that were undone, and the one before");
        assert_eq!(sets.since(), Some(at(12)));
        assert_eq!(segment("000000020000000A000000FF").unwrap(), Segment { timeline: 2, number: 0xaff });
        assert!(segment("000000020000000A").is_err());
    }

    #[test]
    fn streams_are_kept_for_as_long_as_a_base_backup_leads_from_them() {
        let streams = vec![set(1, 2), set(9, 10), set(19, 20)];
        let mut sets = Sets { bases: vec![base(10, 12)], streams, restores: Vec::new() };
        assert_eq!(sets.expired().iter().map(|set| set.label.as_str()).collect::<Vec<_>>(), ["1"]);
        sets.bases[0] = base(30, 31);
        assert_eq!(sets.expired().len(), 2);
        sets.bases[0] = base(30, 31);
        sets.restores.push(PastRestore { to: at(15), at: at(25), timeline: 2 });
        assert_eq!(
            sets.expired().iter().map(|set| set.label.as_str()).collect::<Vec<_>>(),
            ["1", "19"],
            "what was undone"
        );
        sets.bases.clear();
        assert!(sets.expired().is_empty(), "without one nothing is known");
    }
}
