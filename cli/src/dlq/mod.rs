//! `flotilla dlq`: dead letters inspected, corrected, replayed as jobs, discarded. `flotilla replay`: a range of a stream.

mod calls;
mod show;

pub use calls::{Jobs, Letters, SERVICE, UNSETTLED, jobs};

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use proto::ops::job_service_client::JobServiceClient;
use proto::ops::letter_service_client::LetterServiceClient;
use proto::ops::{
    CreateJobRequest, EditLetterRequest, GetJobRequest, Job, ListJobsRequest, ListLettersRequest, Pace, PlanJobRequest,
    PlannedLetter, Selection, Steer, SteerJobRequest,
};
use serde_json::json;

use calls::json_of;

use crate::audit;
use crate::context::Context;
use crate::exit::Exit;
use crate::operator::ActArgs;
use crate::outbox::say;
use crate::processes::{self, said};

#[derive(Debug, Clone, Args)]
pub struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum DlqCommand {
    /// List letters, newest failure first.
    List {
        #[command(flatten)]
        which: SelectArgs,
        /// The most letters to list.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// List the causes: letters grouped by consumer, event type and error.
    Groups {
        #[command(flatten)]
        which: SelectArgs,
    },
    /// Show one letter with its event, its headers and every failure.
    Show {
        /// The letter.
        id: i64,
        /// Print only its event, as it would be replayed: correct it and pass it to `edit`.
        #[arg(long)]
        event: bool,
    },
    /// Replace a letter's event with a corrected one for its replay; the original is kept.
    Edit {
        /// The letter.
        id: i64,
        /// The whole event, as JSON; `-` reads standard input. It must follow the schema of its type.
        #[arg(long)]
        file: PathBuf,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Discard letters: they are never replayed, and no longer hold up later events of their aggregate.
    Discard {
        #[command(flatten)]
        which: SelectArgs,
        /// Only show what would be discarded.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Replay letters to the consumer that failed, as a job that continues without this command.
    Replay {
        #[command(flatten)]
        which: SelectArgs,
        #[command(flatten)]
        pace: PaceArgs,
        /// Only show what would be replayed, in order, and what cannot be handled as it is.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        act: ActArgs,
    },
    /// List the jobs, newest first.
    Jobs {
        /// The most jobs to list.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// Follow a job to its end.
    Watch {
        /// The job.
        job: i64,
    },
    /// Pause a job: it sends nothing more until it is resumed.
    Pause {
        /// The job.
        job: i64,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Resume a paused job.
    Resume {
        /// The job.
        job: i64,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Abort a job: what it has not sent stays a letter.
    Abort {
        /// The job.
        job: i64,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Count the letters by state: the states add up to all letters.
    Stats,
    /// List who did what, when and why, newest first.
    Audit {
        /// The most lines to list.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        lines: i64,
    },
}

/// Which letters.
#[derive(Debug, Clone, Args)]
struct SelectArgs {
    /// The numbers of the letters.
    ids: Vec<i64>,
    /// Only letters of this consumer.
    #[arg(long)]
    consumer: Option<String>,
    /// Only letters of this group (`flotilla dlq groups`).
    #[arg(long)]
    group: Option<String>,
    /// Only letters of this event type.
    #[arg(long = "type")]
    event_type: Option<String>,
    /// Only letters of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Only letters of this aggregate.
    #[arg(long)]
    aggregate: Option<String>,
    /// Only letters with this text in a failure reason.
    #[arg(long)]
    error: Option<String>,
    /// Only letters whose last failure is at or after this time (RFC 3339).
    #[arg(long)]
    since: Option<DateTime<Utc>>,
    /// Only letters whose last failure is before this time (RFC 3339).
    #[arg(long)]
    until: Option<DateTime<Utc>>,
    /// Only letters in this state. Replay and discard always take the unsettled ones.
    #[arg(long, value_parser = ["unsettled", "open", "failed_again", "handled", "discarded", "all"], default_value = "unsettled")]
    state: String,
    /// Every unsettled letter; required when nothing else narrows what is replayed or discarded.
    #[arg(long)]
    all: bool,
}

impl SelectArgs {
    fn selection(&self) -> Selection {
        Selection {
            ids: self.ids.clone(),
            consumer: self.consumer.clone(),
            group: self.group.clone(),
            event_type: self.event_type.clone(),
            tenant: self.tenant.clone(),
            aggregate: self.aggregate.clone(),
            reason: self.error.clone(),
            since: self.since.map(proto::timestamp),
            until: self.until.map(proto::timestamp),
            states: match self.state.as_str() {
                "all" => Vec::new(),
                "unsettled" => UNSETTLED.map(ToOwned::to_owned).to_vec(),
                state => vec![state.to_owned()],
            },
        }
    }

    /// The selection of an act: nobody replays everything by leaving something out.
    fn narrowed(&self) -> Result<Selection, anyhow::Error> {
        let Selection { ids, consumer, group, event_type, tenant, aggregate, reason, since, until, .. } =
            self.selection();
        let texts = [&consumer, &group, &event_type, &tenant, &aggregate, &reason];
        let narrow = !ids.is_empty() || texts.iter().any(|text| text.is_some()) || since.is_some() || until.is_some();
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
    /// How many go first; the rest follow once these are settled and not too many of them failed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(0..=100_000))]
    canary: i64,
    /// The most events a second; after the canary the rate doubles every second up to this.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// The job aborts when more than this share of the settled events has failed: 0 to 1.
    #[arg(long, default_value_t = 0.1)]
    max_failures: f64,
    /// Do not wait for the job to end: `flotilla dlq watch` follows it.
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
    let port = context.port(SERVICE).await?;
    let (mut letters, mut jobs) = (LetterServiceClient::new(port.clone()), JobServiceClient::new(port));
    match &args.command {
        DlqCommand::List { which, limit } => {
            let request = ListLettersRequest { selection: Some(which.selection()), limit: *limit };
            show::list(context, &processes::all(letters.list_letters(request).await).await?)
        }
        DlqCommand::Groups { which } => show::groups(context, &mut letters, which.selection()).await,
        DlqCommand::Show { id, event } => show::show(context, &mut letters, *id, *event).await,
        DlqCommand::Edit { id, file, act } => edit(context, &mut letters, *id, file, act).await,
        DlqCommand::Discard { which, dry_run, act } => discard(context, &mut jobs, which, *dry_run, act).await,
        DlqCommand::Replay { which, pace, dry_run, act } => {
            let (selection, pace, detach) = (which.narrowed()?, pace.pace()?, pace.detach);
            let planned = plan(&mut jobs, "replay", &selection).await?;
            if *dry_run {
                return print_plan(context, &planned);
            }
            act.check(context)?;
            if !context.json {
                show::print_plan(&planned);
            }
            act.confirm(&format!("Replay {} letters?", planned.len()))?;
            let job = create(&mut jobs, "replay", selection, &planned, pace, act).await?;
            started(context, &mut jobs, &job, detach).await
        }
        DlqCommand::Jobs { limit } => {
            show::jobs(context, &processes::all(jobs.list_jobs(ListJobsRequest { limit: *limit }).await).await?)
        }
        DlqCommand::Watch { job } => watch(context, &mut jobs, *job).await,
        DlqCommand::Pause { job, act } => steer(context, &mut jobs, *job, Steer::Pause, act).await,
        DlqCommand::Resume { job, act } => steer(context, &mut jobs, *job, Steer::Resume, act).await,
        DlqCommand::Abort { job, act } => steer(context, &mut jobs, *job, Steer::Abort, act).await,
        DlqCommand::Stats => show::stats(context, &mut letters).await,
        DlqCommand::Audit { lines } => audit::show(context, *lines).await,
    }
}

async fn edit(
    context: &Context,
    letters: &mut Letters,
    id: i64,
    file: &PathBuf,
    act: &ActArgs,
) -> Result<(), anyhow::Error> {
    /// A larger file is no event.
    const MAX: u64 = 1 << 20;
    act.check(context)?;
    let mut event = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX).read_to_end(&mut event)?;
    } else {
        let file = std::fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
        file.take(MAX).read_to_end(&mut event)?;
    }
    let edited = |dry_run| EditLetterRequest { id, event: event.clone(), reason: act.reason.clone(), dry_run };
    letters.edit_letter(edited(true)).await.map_err(said)?;
    act.confirm(&format!("Put this event in the place of letter {id}?"))?;
    letters.edit_letter(edited(false)).await.map_err(said)?;
    say(context, &json!({"edited": id}), &format!("Letter {id} is mended; `flotilla dlq replay {id}` replays it so."));
    Ok(())
}

async fn plan(jobs: &mut Jobs, kind: &str, selection: &Selection) -> Result<Vec<PlannedLetter>, anyhow::Error> {
    let request = PlanJobRequest { kind: kind.to_owned(), selection: Some(selection.clone()) };
    processes::all(jobs.plan_job(request).await).await
}

async fn create(
    jobs: &mut Jobs,
    kind: &str,
    selection: Selection,
    planned: &[PlannedLetter],
    pace: Pace,
    act: &ActArgs,
) -> Result<Job, anyhow::Error> {
    let request = CreateJobRequest {
        kind: kind.to_owned(),
        selection: Some(selection),
        letters: planned.iter().map(|letter| letter.id).collect(),
        pace: Some(pace),
        reason: act.reason.clone(),
    };
    Ok(jobs.create_job(request).await.map_err(said)?.into_inner())
}

fn print_plan(context: &Context, planned: &[PlannedLetter]) -> Result<(), anyhow::Error> {
    if context.json {
        let problem = |letter: &PlannedLetter| Some(json!({"letter": letter.id, "error": letter.problem.as_ref()?}));
        let wrong: Vec<_> = planned.iter().filter_map(problem).collect();
        let letters: Vec<_> = planned.iter().map(processes::json).collect::<Result<_, _>>()?;
        println!("{}", serde_json::to_string_pretty(&json!({"letters": letters, "against_their_schema": wrong}))?);
    } else {
        show::print_plan(planned);
        println!("Nothing was changed.");
    }
    Ok(())
}

async fn discard(
    context: &Context,
    jobs: &mut Jobs,
    which: &SelectArgs,
    dry_run: bool,
    act: &ActArgs,
) -> Result<(), anyhow::Error> {
    // The job reports each to the consumer, as fast as it takes them.
    let pace = Pace { canary: 0, rate: 10_000.0, max_failures: 1.0 };
    let selection = which.narrowed()?;
    let planned = plan(jobs, "discard", &selection).await?;
    if dry_run {
        return print_plan(context, &planned);
    }
    act.check(context)?;
    act.confirm(&format!("Give up {} letters for ever?", planned.len()))?;
    let job = create(jobs, "discard", selection, &planned, pace, act).await?.id;
    let json = json!({"discarded": planned.len(), "job": job});
    say(context, &json, &format!("{} letters are discarded; job {job} reports it to their consumer.", planned.len()));
    Ok(())
}

pub async fn started(context: &Context, jobs: &mut Jobs, job: &Job, detach: bool) -> Result<(), anyhow::Error> {
    let job = job.id;
    if detach {
        say(context, &json!({"job": job}), &format!("Job {job} has begun; `flotilla dlq watch {job}` follows it."));
        return Ok(());
    }
    watch(context, jobs, job).await
}

/// Follows a job to its end. The job goes on without this.
async fn watch(context: &Context, jobs: &mut Jobs, id: i64) -> Result<(), anyhow::Error> {
    let mut job = jobs.get_job(GetJobRequest { id }).await.map_err(said)?.into_inner();
    let bar = if context.json { ProgressBar::hidden() } else { ProgressBar::new(job.total.cast_unsigned()) };
    bar.set_style(
        ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg} {elapsed}")?.progress_chars("=> "),
    );
    bar.set_prefix(format!("job {id}"));
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    // An aborted job waits for what was on its way.
    while !matches!(job.state.as_str(), "done" | "aborted") || job.sent > 0 {
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
        job = jobs.get_job(GetJobRequest { id }).await.map_err(said)?.into_inner();
    }
    bar.finish_and_clear();
    let text = format!(
        "Job {id} is {}: {} handled, {} failed again, {} left out, of {}. {}",
        job.state, job.handled, job.failed, job.skipped, job.total, job.detail
    );
    say(context, &json_of(&job)?, &text);
    if job.handled == job.total {
        return Ok(());
    }
    Err(Exit::unfinished(if context.json { String::new() } else { "not everything was handled".to_owned() }).into())
}

async fn steer(context: &Context, jobs: &mut Jobs, id: i64, to: Steer, act: &ActArgs) -> Result<(), anyhow::Error> {
    act.check(context)?;
    act.confirm(&format!("{to:?} job {id}?"))?;
    let request = SteerJobRequest { id, to: to.into(), reason: act.reason.clone() };
    let now = jobs.steer_job(request).await.map_err(said)?.into_inner();
    say(context, &json_of(&now)?, &format!("Job {id} is {}.", now.state));
    Ok(())
}
