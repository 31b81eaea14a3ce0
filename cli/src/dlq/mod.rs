//! `flotilla dlq`: dead letters looked at, mended, replayed as jobs, discarded. `flotilla replay`: a range of a stream.

mod show;

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use operations::letters;
use operations::pace::Pace;
use operations::store::{self, Act, Selection};
use operations::store_jobs::{self, Order, Planned, Steer};
use serde_json::json;
use sqlx::PgConnection;

use crate::exit::Exit;
use crate::operator::ActArgs;
use crate::outbox::{database, say};
use crate::stack::Context;

#[derive(Debug, Clone, Args)]
pub struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum DlqCommand {
    /// List letters, those that died last first.
    List {
        #[command(flatten)]
        which: SelectArgs,
        /// How many at most.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// The causes: letters that died alike, by consumer, event type and error.
    Groups {
        #[command(flatten)]
        which: SelectArgs,
    },
    /// One letter with its event, its headers and every time it died.
    Show {
        /// The letter.
        id: i64,
        /// Print its event alone, as it would be replayed: to mend it and give it to `edit`.
        #[arg(long)]
        event: bool,
    },
    /// Put a mended event in the place of a dead one, for its replay; the original is kept.
    Edit {
        /// The letter.
        id: i64,
        /// The whole event, as JSON; `-` reads it from standard input. It must follow the schema of its type.
        #[arg(long)]
        file: PathBuf,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Give letters up: they are never replayed, and hold up no later event of their aggregate any more.
    Discard {
        #[command(flatten)]
        which: SelectArgs,
        /// Only show what would be discarded.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Replay letters to the consumer that failed, as a job that goes on without this command.
    Replay {
        #[command(flatten)]
        which: SelectArgs,
        #[command(flatten)]
        pace: PaceArgs,
        /// Only show what would be replayed, in its order, and what cannot be handled as it is.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        act: ActArgs,
    },
    /// The jobs, newest first.
    Jobs {
        /// How many at most.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// Follow a job to its end.
    Watch {
        /// The job.
        job: i64,
    },
    /// Send nothing more of a job until it is resumed.
    Pause {
        /// The job.
        job: i64,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Have a paused job go on.
    Resume {
        /// The job.
        job: i64,
        #[command(flatten)]
        act: ActArgs,
    },
    /// End a job: what it has not sent stays a letter.
    Abort {
        /// The job.
        job: i64,
        #[command(flatten)]
        act: ActArgs,
    },
    /// How many letters there are, by state: the states add up to all of them.
    Stats,
    /// Who did what, when and why, newest first.
    Audit {
        /// How many lines at most.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        lines: i64,
    },
}

/// Which letters.
#[derive(Debug, Clone, Args)]
struct SelectArgs {
    /// These letters, by number.
    ids: Vec<i64>,
    /// Of this consumer.
    #[arg(long)]
    consumer: Option<String>,
    /// Of this group (`flotilla dlq groups`).
    #[arg(long)]
    group: Option<String>,
    /// Of this event type.
    #[arg(long = "type")]
    event_type: Option<String>,
    /// Of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Of this aggregate.
    #[arg(long)]
    aggregate: Option<String>,
    /// With this text in a reason for which they died.
    #[arg(long)]
    error: Option<String>,
    /// Died last at or after this time (RFC 3339).
    #[arg(long)]
    since: Option<DateTime<Utc>>,
    /// Died last before this time (RFC 3339).
    #[arg(long)]
    until: Option<DateTime<Utc>>,
    /// In this state. To replay and to discard, always those that are not settled.
    #[arg(long, value_parser = ["unsettled", "open", "failed_again", "handled", "discarded", "all"], default_value = "unsettled")]
    state: String,
    /// Every unsettled letter; needed when nothing else narrows what is replayed or discarded.
    #[arg(long)]
    all: bool,
}

impl SelectArgs {
    fn selection(&self) -> Selection {
        Selection {
            ids: (!self.ids.is_empty()).then(|| self.ids.clone()),
            consumer: self.consumer.clone(),
            group: self.group.clone(),
            event_type: self.event_type.clone(),
            tenant: self.tenant.clone(),
            aggregate: self.aggregate.clone(),
            reason: self.error.clone(),
            since: self.since,
            until: self.until,
            states: match self.state.as_str() {
                "all" => None,
                "unsettled" => Some(Selection::unsettled()),
                state => Some(vec![state.to_owned()]),
            },
        }
    }

    /// The selection of an act: nobody replays everything by leaving something out.
    fn narrowed(&self) -> Result<Selection, anyhow::Error> {
        let Selection { ids, consumer, group, event_type, tenant, aggregate, reason, since, until, .. } =
            self.selection();
        let texts = [&consumer, &group, &event_type, &tenant, &aggregate, &reason];
        let narrow = ids.is_some() || texts.iter().any(|text| text.is_some()) || since.is_some() || until.is_some();
        anyhow::ensure!(
            narrow || self.all,
            "which letters? Name them, or choose by --group, --consumer, ...; or say --all"
        );
        Ok(self.selection())
    }
}

/// How a job goes.
#[derive(Debug, Clone, Args)]
pub struct PaceArgs {
    /// So many go first; the rest follows once they are settled and not too many of them failed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(0..=100_000))]
    canary: i64,
    /// At most so many a second; after the canary the rate doubles every second up to this.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// The job aborts itself when more than this share of what is settled has failed: 0 to 1.
    #[arg(long, default_value_t = 0.1)]
    max_failures: f64,
    /// Do not wait for the end of the job: `flotilla dlq watch` follows it.
    #[arg(long)]
    detach: bool,
}

impl PaceArgs {
    pub const fn detach(&self) -> bool {
        self.detach
    }

    pub fn pace(&self) -> Result<Pace, anyhow::Error> {
        anyhow::ensure!(
            self.rate > 0.0 && self.rate <= 100_000.0,
            "--rate must be above 0 and at most 100000 a second"
        );
        anyhow::ensure!((0.0..=1.0).contains(&self.max_failures), "--max-failures must be 0 to 1");
        Ok(Pace { canary: self.canary, rate: self.rate, max_failures: self.max_failures })
    }
}

pub async fn run(context: &Context, args: &DlqArgs) -> Result<(), anyhow::Error> {
    let db = &mut database(context, "operations").await?;
    match &args.command {
        DlqCommand::List { which, limit } => show::list(context, &store::list(db, &which.selection(), *limit).await?),
        DlqCommand::Groups { which } => show::groups(context, db, &which.selection()).await,
        DlqCommand::Show { id, event } => show::show(context, db, *id, *event).await,
        DlqCommand::Edit { id, file, act } => edit(context, db, *id, file, act).await,
        DlqCommand::Discard { which, dry_run, act } => discard(context, db, which, *dry_run, act).await,
        DlqCommand::Replay { which, pace, dry_run, act } => {
            let order = Order { kind: "replay", selection: &which.narrowed()?, pace: pace.pace()? };
            let planned = store_jobs::plan(db, order).await?;
            let undecodable = undecodable(db, &planned).await?;
            if *dry_run {
                return plan(context, &planned, &undecodable);
            }
            let actor = act.operator(context).await?;
            if !context.json {
                show::print_plan(&planned, &undecodable);
            }
            act.confirm(&format!("Replay {} letters?", planned.len()))?;
            let job = store_jobs::create(db, order, &planned, Act { actor: &actor, reason: &act.reason }).await?;
            started(context, db, job, pace.detach).await
        }
        DlqCommand::Jobs { limit } => show::jobs(context, &store_jobs::jobs(db, *limit).await?),
        DlqCommand::Watch { job } => watch(context, db, *job).await,
        DlqCommand::Pause { job, act } => steer(context, db, *job, Steer::Pause, act).await,
        DlqCommand::Resume { job, act } => steer(context, db, *job, Steer::Resume, act).await,
        DlqCommand::Abort { job, act } => steer(context, db, *job, Steer::Abort, act).await,
        DlqCommand::Stats => show::stats(context, db).await,
        DlqCommand::Audit { lines } => show::audit(context, db, *lines).await,
    }
}

async fn edit(
    context: &Context,
    db: &mut PgConnection,
    id: i64,
    file: &PathBuf,
    act: &ActArgs,
) -> Result<(), anyhow::Error> {
    /// More is no event.
    const MOST: u64 = 1 << 20;
    let actor = act.operator(context).await?;
    let mut edited = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().lock().take(MOST).read_to_end(&mut edited)?;
    } else {
        let file = std::fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
        file.take(MOST).read_to_end(&mut edited)?;
    }
    let (letter, _) = store::whole(db, id).await?;
    letters::check_edit(&letter.subject, letter.payload.as_deref(), &edited)?;
    act.confirm(&format!("Put this event in the place of letter {id}?"))?;
    store::edit(db, id, &edited, Act { actor: &actor, reason: &act.reason }).await?;
    say(context, &json!({"edited": id}), &format!("Letter {id} is mended; `flotilla dlq replay {id}` replays it so."));
    Ok(())
}

/// The letters of a plan whose event does not follow its schema as it is.
async fn undecodable(db: &mut PgConnection, planned: &[Planned]) -> Result<Vec<(i64, String)>, anyhow::Error> {
    /// Enough to see what is wrong.
    const MOST: usize = 1_000;
    let mut wrong = Vec::new();
    for planned in planned.iter().take(MOST) {
        let (letter, _) = store::whole(db, planned.id).await?;
        let event = letter.edited.as_ref().or(letter.payload.as_ref());
        if let Some(Err(error)) = event.map(|event| letters::check_edit(&letter.subject, None, event)) {
            wrong.push((planned.id, error.to_string()));
        }
    }
    Ok(wrong)
}

fn plan(context: &Context, planned: &[Planned], undecodable: &[(i64, String)]) -> Result<(), anyhow::Error> {
    if context.json {
        let wrong: Vec<_> = undecodable.iter().map(|(id, error)| json!({"letter": id, "error": error})).collect();
        println!("{}", serde_json::to_string_pretty(&json!({"letters": planned, "against_their_schema": wrong}))?);
    } else {
        show::print_plan(planned, undecodable);
        println!("Nothing was changed.");
    }
    Ok(())
}

async fn discard(
    context: &Context,
    db: &mut PgConnection,
    which: &SelectArgs,
    dry_run: bool,
    act: &ActArgs,
) -> Result<(), anyhow::Error> {
    // The consumer is told of each, as fast as it takes them.
    let pace = Pace { canary: 0, rate: 10_000.0, max_failures: 1.0 };
    let order = Order { kind: "discard", selection: &which.narrowed()?, pace };
    let planned = store_jobs::plan(db, order).await?;
    if dry_run {
        return plan(context, &planned, &[]);
    }
    let actor = act.operator(context).await?;
    act.confirm(&format!("Give up {} letters for ever?", planned.len()))?;
    let job = store_jobs::create(db, order, &planned, Act { actor: &actor, reason: &act.reason }).await?;
    let json = json!({"discarded": planned.len(), "job": job});
    say(context, &json, &format!("{} letters are discarded; job {job} tells their consumer.", planned.len()));
    Ok(())
}

pub async fn started(context: &Context, db: &mut PgConnection, job: i64, detach: bool) -> Result<(), anyhow::Error> {
    if detach {
        say(context, &json!({"job": job}), &format!("Job {job} has begun; `flotilla dlq watch {job}` follows it."));
        return Ok(());
    }
    watch(context, db, job).await
}

/// Follows a job to its end. It goes on without this.
async fn watch(context: &Context, db: &mut PgConnection, id: i64) -> Result<(), anyhow::Error> {
    let mut job = store_jobs::job(db, id).await?;
    let bar = if context.json { ProgressBar::hidden() } else { ProgressBar::new(job.total.cast_unsigned()) };
    bar.set_style(
        ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg} {elapsed}")?.progress_chars("=> "),
    );
    bar.set_prefix(format!("job {id}"));
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    // An aborted job waits for what was on its way.
    while !job.has_ended() || job.sent > 0 {
        bar.set_position((job.handled + job.failed + job.skipped).cast_unsigned());
        bar.set_message(format!("{} handled, {} failed, {}", job.handled, job.failed, job.state));
        if job.state == "paused" && job.sent == 0 {
            break;
        }
        tokio::select! {
            _ = tick.tick() => {}
            stopped = tokio::signal::ctrl_c() => {
                bar.abandon();
                stopped?;
                anyhow::bail!("job {id} goes on without this: `flotilla dlq watch {id}` follows it, `abort {id}` ends it");
            }
        }
        job = store_jobs::job(db, id).await?;
    }
    bar.finish_and_clear();
    let text = format!(
        "Job {id} is {}: {} handled, {} failed again, {} left out, of {}. {}",
        job.state, job.handled, job.failed, job.skipped, job.total, job.story
    );
    say(context, &serde_json::to_value(&job)?, &text);
    if job.handled == job.total {
        return Ok(());
    }
    Err(Exit::unfinished(if context.json { String::new() } else { "not everything was handled".to_owned() }).into())
}

async fn steer(
    context: &Context,
    db: &mut PgConnection,
    job: i64,
    to: Steer,
    act: &ActArgs,
) -> Result<(), anyhow::Error> {
    let actor = act.operator(context).await?;
    act.confirm(&format!("{to:?} job {job}?"))?;
    store_jobs::steer(db, job, to, Act { actor: &actor, reason: &act.reason }).await?;
    let now = store_jobs::job(db, job).await?;
    say(context, &serde_json::to_value(&now)?, &format!("Job {job} is {}.", now.state));
    Ok(())
}
