//! A stopped stack's stores as they were at a moment. They are made beside those that are there, which then move aside: whatever fails
//! until then, or is killed, leaves them as they were.

use std::io::ErrorKind;
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
use crate::postgres::{Postgres, Recovered};
use crate::stack::{self, Lock};
use crate::stack_dir::{self, RESTORING, StackDir};
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
    /// The time; behind all others for the latest.
    #[must_use]
    pub fn time(self) -> DateTime<Utc> {
        match self {
            Self::Latest => DateTime::<Utc>::MAX_UTC,
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
    goes_on: bool,
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
    /// When the newest change was committed that is there, as PostgreSQL says it; None where that is in the base backup itself.
    pub newest: Option<String>,
    /// The timeline of PostgreSQL's log from here on.
    pub timeline: u32,
    /// How long it took to copy the files of the base backup, and to replay the log.
    pub database_seconds: f64,
    /// How long the streams took.
    pub streams_seconds: f64,
}

impl Plan {
    /// Looks at what there is. `key` is the key of the backups, where the stack's folder has none; `goes_on` says whether the stack goes
    /// on with the repository, whose log then begins a new timeline; `keep` whether the streams stay, by default where there are any.
    ///
    /// # Errors
    /// The stack runs, or no backup leads to the moment: the error names the moments that are left.
    pub async fn make(
        home: &StackDir,
        (repository, key): (&Repository, Option<&Path>),
        to: Moment,
        (goes_on, keep): (bool, Option<bool>),
        say: &Reporter,
    ) -> Result<Self, anyhow::Error> {
        let lock = stack::lock(home).await?;
        ensure!(to == Moment::Latest || to.time() <= now(), "that moment has not come yet");
        if let Some(noted) = Repository::noted(home).filter(|_| !goes_on) {
            bail!(
                "the backups of this fleet are in {}: restore from there; or go on with {} by --take-over; or say another --home for a \
                 trial",
                noted.display(),
                repository.folder().display()
            );
        }
        let key = Key::given(home, key).await?;
        key.check(home).await?;
        let programs = install::all(say).await?;
        let postgres = Postgres::of(home, &programs.postgres, Ports::default().pick(0)?, true)?;
        let archive = Archive::open(home, (repository, &key), &postgres)?;
        let info = archive.info().await?;
        let mut sets = Sets { bases: info.bases, ..repository.sets()? };
        let to = reachable(to, sets.without_archive(info.newest.as_ref()))?;
        let base = chosen(&sets, to)?.clone();
        let has_streams = Nats::store(home).join("jetstream").exists();
        let streams = match (keep.unwrap_or(has_streams), sets.streams(to.time())) {
            (true, _) => Streams::Kept,
            (false, Some(set)) => Streams::Of(set.clone()),
            (false, None) => Streams::Empty,
        };
        let timeline = sets.timeline(to.time());
        let (home, repository) = (home.clone(), repository.clone());
        Ok(Self {
            base,
            streams,
            to,
            timeline,
            goes_on,
            key,
            home,
            repository,
            programs,
            postgres,
            archive,
            _lock: lock,
        })
    }

    /// Does it. The stores are made beside those that are there, and then change places with them.
    ///
    /// # Errors
    /// Something fails: until the places are changed, the stores are as they were.
    pub async fn run(&self) -> Result<Restored, anyhow::Error> {
        // The database last: while its folder waits for its place, no other one is made in it.
        let stores = [Nats::store(&self.home), self.postgres.data.clone()];
        let [streams, database] = &stores;
        for store in &stores {
            remove(&beside(store))?;
        }
        let restored = match self.put_back(&beside(database), &beside(streams)).await {
            Ok(restored) => restored,
            Err(error) => {
                for store in &stores {
                    remove(&beside(store)).ok();
                }
                return Err(error.context("nothing was changed"));
            }
        };
        let kept = usize::from(matches!(self.streams, Streams::Kept));
        let changed = change_places(&stores[kept..]);
        if changed.is_err() && self.goes_on {
            self.repository.unrestored()?;
        }
        let aside = changed?;
        if self.goes_on {
            let goes_on = self.go_on();
            goes_on
                .context("the stores are back, and the repository does not go on with this fleet yet: run it again")?;
        }
        // It is made again from the events.
        remove(&self.home.path("data/opensearch"))?;
        Ok(Restored { aside, ..restored })
    }

    fn go_on(&self) -> Result<(), anyhow::Error> {
        self.key.keep(&self.home)?;
        let mut repository = self.repository.clone();
        if !repository.is_of(&self.home)? {
            repository.take_over(&self.home)?;
        }
        self.archive.attach()
    }

    async fn put_back(&self, database: &Path, streams: &Path) -> Result<Restored, anyhow::Error> {
        stack_dir::check_disk(&self.home.path(""))?;
        let started = Instant::now();
        let target = match self.to {
            Moment::Latest => None,
            Moment::At(to) => Some(to.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()),
        };
        let server = self.postgres.at(database.to_owned());
        let to = (target.as_deref(), self.timeline);
        let Recovered { timeline, segment, newest } = self.archive.put_back(&self.base.label, to, &server).await?;
        if self.to == Moment::Latest
            && let Some(last) = self.archive.info().await?.newest
        {
            let newest = newest.as_deref().unwrap_or("the backup itself");
            ensure!(
                self.timeline.unwrap_or_else(|| self.repository.began_with()) != last.timeline
                    || segment >= last.number,
                "the archived log has a gap: its newest change before that is of {newest}, and there is more behind it. Say an earlier \
                 moment, or bring the missing file back into the repository"
            );
        }
        let database_seconds = started.elapsed().as_secs_f64();
        Box::pin(self.nats(streams)).await?;
        let streams_seconds = started.elapsed().as_secs_f64() - database_seconds;
        if self.goes_on {
            let at = now();
            let to = if let Moment::At(to) = self.to { to } else { at };
            self.repository.restored(PastRestore { to, at, timeline })?;
        }
        Ok(Restored { aside: Vec::new(), newest, timeline, database_seconds, streams_seconds })
    }

    async fn nats(&self, store: &Path) -> Result<(), anyhow::Error> {
        let Streams::Of(set) = &self.streams else { return Ok(()) };
        let mut ports = Ports::default();
        let ports = (ports.pick(0)?, ports.pick(0)?);
        let (program, layout) = (&self.programs.nats_server, Layout::Fleet(Vec::new()));
        let nats = Nats::prepare_at(&self.home, program, ports, layout, store.to_owned())?;
        let address = nats.address();
        Box::pin(nats.program().run_for(self.repository.load(&self.home, &self.key, &address, set))).await
    }
}

/// Where a store is made.
fn beside(store: &Path) -> PathBuf {
    store.with_extension(RESTORING)
}

fn remove(folder: &Path) -> Result<(), anyhow::Error> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Puts what was made in the places of the stores, and returns where these are now. One store of another time than the rest is worse
/// than none: all change, or none.
fn change_places(stores: &[PathBuf]) -> Result<Vec<PathBuf>, anyhow::Error> {
    let stamp = now().format("%Y%m%d-%H%M%S");
    let mut moves = Vec::new();
    for store in stores {
        moves.push((store.clone(), store.with_extension(format!("before-{stamp}"))));
        moves.push((beside(store), store.clone()));
    }
    moves.retain(|(from, _)| from.exists());
    for (done, (from, to)) in moves.iter().enumerate() {
        if let Err(error) = std::fs::rename(from, to) {
            for (from, to) in moves[..done].iter().rev() {
                std::fs::rename(to, from).with_context(|| format!("moving {} back", to.display()))?;
            }
            return Err(error).with_context(|| format!("moving {}", from.display())).context("nothing was changed");
        }
    }
    Ok(moves.into_iter().map(|(_, to)| to).filter(|to| !stores.contains(to)).collect())
}

/// The moment, where nothing of what was done since a restore is archived: then there is nothing behind that restore's moment.
fn reachable(to: Moment, without_archive: Option<PastRestore>) -> Result<Moment, anyhow::Error> {
    match (to, without_archive) {
        (Moment::Latest, Some(restore)) if restore.to < restore.at => Ok(Moment::At(restore.to)),
        (Moment::At(at), Some(restore)) if at > restore.to => bail!(
            "nothing is archived of what was done since the restore of {}: say {}, to which that went back, or `latest`",
            restore.at.to_rfc3339_opts(SecondsFormat::Secs, true),
            restore.to.to_rfc3339_opts(SecondsFormat::Micros, true)
        ),
        _ => Ok(to),
    }
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
    base.with_context(|| match sets.since() {
        Some(first) => format!("no backup is old enough: the first one leads to {} and later", text(first)),
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
