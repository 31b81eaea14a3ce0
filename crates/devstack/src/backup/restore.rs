//! A stopped stack's stores as they were at a moment. What they held until then is moved aside; when anything fails, it is
//! moved back.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::age::Key;
use super::database::Archive;
use super::repository::Repository;
use super::sets::{Base, PastRestore, Sets, StreamSet};
use crate::Reporter;
use crate::install::{self, Programs};
use crate::nats::{Layout, Nats};
use crate::ports::Ports;
use crate::postgres::Postgres;
use crate::stack::{self, Lock};
use crate::stack_dir::{self, StackDir};
use crate::supervisor::now;

/// To where a restore goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The end of the archived log.
    Latest,
    /// What was committed until then.
    At(DateTime<Utc>),
}

impl std::str::FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let at = DateTime::parse_from_rfc3339(text);
        at.map(|at| Self::At(at.into())).map_err(|_| "say `latest`, or a time as 2026-11-28T03:00:00Z".to_owned())
    }
}

impl Moment {
    fn time(self) -> DateTime<Utc> {
        match self {
            Self::Latest => now(),
            Self::At(at) => at,
        }
    }
}

/// What a restore is going to do. The stack cannot start meanwhile.
pub struct Plan {
    /// The base backup that is put back; the log is replayed from there.
    pub base: Base,
    /// The set of streams that is put back.
    pub streams: Streams,
    to: Moment,
    timeline: Option<u32>,
    key: Key,
    home: StackDir,
    repository: Repository,
    programs: Programs,
    postgres: Postgres,
    archive: Archive,
    _lock: Lock,
}

/// What becomes of the streams.
pub enum Streams {
    /// They stay as they are: what they have beyond the moment is taken out afterwards, and saved.
    Kept,
    /// Those of a set; from its end on they are filled from the outboxes.
    Of(StreamSet),
    /// No set is old enough: they are filled from the outboxes.
    Empty,
}

/// What a restore did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Where the data is that was there before.
    pub aside: Vec<PathBuf>,
    /// The timeline of PostgreSQL's log from here on.
    pub timeline: u32,
    /// How long it took to copy the files of the base backup.
    pub files_seconds: f64,
    /// How long the server replayed its log.
    pub log_seconds: f64,
    /// How long the streams took.
    pub streams_seconds: f64,
}

impl Plan {
    /// Looks at what there is. `key` is the key of the backups, where the stack's folder has none; `keep` says whether the streams
    /// stay, by default where there are any.
    ///
    /// # Errors
    /// The stack runs, or no backup leads to the moment: the error names the moments that are left.
    pub async fn make(
        home: &StackDir,
        (repository, key): (&Repository, Option<&Path>),
        to: Moment,
        keep: Option<bool>,
        say: &Reporter,
    ) -> Result<Self, anyhow::Error> {
        let lock = stack::lock(home).await?;
        ensure!(to == Moment::Latest || to.time() <= now(), "that moment has not come yet");
        let key = match key {
            Some(file) => Key::read(file).await?,
            None => Key::of(home).await?,
        };
        key.check(home).await?;
        let programs = install::all(say).await?;
        let postgres = Postgres::of(home, &programs.postgres, Ports::default().pick(0)?, true)?;
        let archive = Archive::open(home, (repository, &key), &postgres)?;
        let sets = Sets { bases: archive.bases().await?, ..repository.sets()? };
        let base = chosen(&sets, to)?.clone();
        let has_streams = home.path("data/nats/jetstream").exists();
        let streams = match (keep.unwrap_or(has_streams), sets.streams(to.time())) {
            (true, _) => Streams::Kept,
            (false, Some(set)) => Streams::Of(set.clone()),
            (false, None) => Streams::Empty,
        };
        let timeline = sets.timeline(to.time());
        let (home, repository) = (home.clone(), repository.clone());
        Ok(Self { base, streams, to, timeline, key, home, repository, programs, postgres, archive, _lock: lock })
    }

    /// Does it.
    ///
    /// # Errors
    /// Something fails: the stores are as they were.
    pub async fn run(&self) -> Result<Restored, anyhow::Error> {
        // It has opened what is there.
        self.key.keep(&self.home)?;
        self.archive.attach()?;
        let stamp = now().format("%Y%m%d-%H%M%S");
        let mut stores = vec![self.postgres.data.clone()];
        if !matches!(self.streams, Streams::Kept) {
            stores.push(self.home.path("data/nats"));
        }
        let before = |store: &Path| store.with_extension(format!("before-{stamp}"));
        let mut moved = Vec::new();
        for store in stores.iter().filter(|store| store.exists()) {
            let moving = std::fs::rename(store, before(store));
            if let Err(error) = moving.with_context(|| format!("moving {} aside", store.display())) {
                back(&moved)?;
                return Err(error);
            }
            moved.push((store.as_path(), before(store)));
        }
        let restored = match self.put_back().await {
            Ok(restored) => restored,
            Err(error) => {
                // One store of another time than the rest is worse than none.
                for store in stores.iter().filter(|store| store.exists()) {
                    std::fs::remove_dir_all(store).with_context(|| format!("removing {}", store.display()))?;
                }
                back(&moved)?;
                return Err(error.context("nothing was changed"));
            }
        };
        // It is made again from the events.
        let index = self.home.path("data/opensearch");
        if index.exists() {
            std::fs::remove_dir_all(&index).with_context(|| format!("removing {}", index.display()))?;
        }
        let at = now();
        let to = if let Moment::At(to) = self.to { to } else { at };
        self.repository.restored(PastRestore { to, at, timeline: restored.timeline })?;
        self.repository.note(&self.home)?;
        Ok(Restored { aside: moved.into_iter().map(|(_, before)| before).collect(), ..restored })
    }

    async fn put_back(&self) -> Result<Restored, anyhow::Error> {
        let (timeline, files_seconds, log_seconds) = self.database().await?;
        let started = Instant::now();
        Box::pin(self.nats()).await?;
        let streams_seconds = started.elapsed().as_secs_f64();
        Ok(Restored { aside: Vec::new(), timeline, files_seconds, log_seconds, streams_seconds })
    }

    /// The new timeline, and how many seconds the files took, and the log.
    async fn database(&self) -> Result<(u32, f64, f64), anyhow::Error> {
        stack_dir::check_disk(&self.home.path(""))?;
        self.postgres.make_data()?;
        let started = Instant::now();
        let target = match self.to {
            Moment::Latest => None,
            Moment::At(to) => Some(to.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()),
        };
        let target = target.as_deref().map(|target| (target, self.timeline));
        self.archive.put_back(&self.base.label, target).await?;
        let files = started.elapsed();
        let timeline = self.postgres.recover().await.context(
            "PostgreSQL does not reach that moment; if its log says that recovery ended before, the archive ends earlier: \
             say an earlier moment, or `latest`",
        )?;
        Ok((timeline, files.as_secs_f64(), started.elapsed().saturating_sub(files).as_secs_f64()))
    }

    async fn nats(&self) -> Result<(), anyhow::Error> {
        let Streams::Of(set) = &self.streams else { return Ok(()) };
        let mut ports = Ports::default();
        let ports = (ports.pick(0)?, ports.pick(0)?);
        let nats = Nats::prepare(&self.home, &self.programs.nats_server, ports, Layout::Fleet(Vec::new()))?;
        let address = nats.address();
        Box::pin(nats.program().run_for(self.repository.load(&self.home, &self.key, &address, set))).await
    }
}

/// Moves stores back to where they were.
fn back(moved: &[(&Path, PathBuf)]) -> Result<(), anyhow::Error> {
    for (store, before) in moved {
        std::fs::rename(before, store).with_context(|| format!("moving {} back", before.display()))?;
    }
    Ok(())
}

fn chosen(sets: &Sets, to: Moment) -> Result<&Base, anyhow::Error> {
    let text = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
    if let (Moment::At(to), Some(undone)) = (to, sets.undone(to.time())) {
        bail!(
            "{} was undone by the restore of {}, which went back to {}: no backup leads there any more",
            text(to),
            text(undone.at),
            text(undone.to)
        );
    }
    let base = sets.base(to.time());
    base.with_context(|| match sets.bases.first() {
        Some(first) => format!("no backup is old enough: the first one leads to {} and later", text(first.ended)),
        None => "there is no backup of PostgreSQL in this repository".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_with_its_zone() {
        assert_eq!("latest".parse(), Ok(Moment::Latest));
        let at = "2026-11-28T04:00:00.5+01:00".parse::<Moment>().unwrap().time();
        assert_eq!(at.to_rfc3339_opts(SecondsFormat::Millis, true), "2026-11-28T03:00:00.500Z");
        for wrong in ["", "yesterday", "2026-11-28", "2026-11-28T04:00:00", "1764300000"] {
            assert!(wrong.parse::<Moment>().is_err(), "{wrong}");
        }
    }
}
