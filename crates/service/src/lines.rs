//! Log lines: one JSON object each, which names its service, release and trace.
//!
//! Beside occasional lines there is one for each request and call (target `request`), each handled event (`consumer::handled`) and each
//! published batch (`outbox::published`). Of these, the lines at INFO (done or refused) are written for a share of all traces only, the
//! same in every service. Failures are at WARN and always written.

use std::fmt::{self, Debug};
use std::io::{self, BufWriter};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use authz::Caller;
use opentelemetry::trace::TraceId;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::trace;

/// The target of lines of requests and calls.
pub const REQUEST: &str = "request";
const SAMPLED: [&str; 3] = [REQUEST, "consumer::handled", "outbox::published"];

/// How many lines may wait to be written.
const WAITING: usize = 4_096;
/// How long the process waits for the thread, which itself gives up after a second: what it says then may block, too.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);
/// The thread that writes them ends once this is dropped, and all are written.
static WRITES: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Has a thread of its own write lines to standard output, many at once where there are many. Where too many wait, the process waits, and loses
/// none.
pub(crate) fn writer() -> (NonBlocking, WorkerGuard) {
    let lines = NonBlockingBuilder::default().lossy(false).buffered_lines_limit(WAITING);
    lines.finish(BufWriter::new(io::stdout()))
}

/// Has the lines that wait written when the process ends.
pub(crate) fn keep(writes: WorkerGuard) {
    *WRITES.lock().unwrap_or_else(PoisonError::into_inner) = Some(writes);
}

/// Writes the lines that wait, as the process ends; whoever reads them slowly misses the rest. Later lines are lost.
pub(crate) fn write_waiting() {
    let Some(writes) = WRITES.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let (done, written) = mpsc::channel();
    thread::spawn(move || {
        drop(writes);
        done.send(()).ok();
    });
    written.recv_timeout(WRITTEN_WITHIN).ok();
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// The caller's error.
    Refused,
    /// Our error.
    Failed,
}

/// The line of a request or a call.
#[derive(Debug)]
pub struct Line<'a> {
    /// `request` over HTTP, `call` over gRPC.
    pub kind: &'static str,
    /// The method and the path's template, or the method's full name; never what the caller wrote into a path.
    pub method: &'a str,
    /// The caller, where known.
    pub who: Option<&'a Caller>,
    /// The stable code of docs/errors.md, or the status' name.
    pub code: &'a str,
    /// HTTP's or gRPC's status.
    pub status: u16,
    /// The outcome.
    pub outcome: Outcome,
    /// From the request's head to the answer's.
    pub took: Duration,
    /// The events it has written, separated by commas.
    pub events: Option<String>,
    /// It got the answer of an earlier request.
    pub replayed: bool,
    /// The backing services that the answer was made without, separated by commas.
    pub degraded: Option<String>,
}

/// To the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

impl Line<'_> {
    /// Writes the line, with its trace.
    pub fn write(&self) {
        let Self { kind, method, who, code, status, outcome, took, events, replayed, degraded } = self;
        let (tenant, actor) = (who.map(|who| who.tenant.as_str()), who.map(|who| who.actor.to_string()));
        let (duration_ms, event_ids) = (millis(*took), events.as_deref());
        let replayed = replayed.then_some(true);
        macro_rules! line {
            ($write:ident, $outcome:literal) => {
                tracing::$write!(target: REQUEST, method, tenant, actor, outcome = $outcome, code, status, duration_ms,
                    event_ids, replayed, degraded, "{kind}")
            };
        }
        match outcome {
            Outcome::Done => line!(info, "done"),
            Outcome::Refused => line!(info, "refused"),
            Outcome::Failed => line!(warn, "failed"),
        }
    }
}

/// Writes the line of a request whose caller does not wait for its answer, unless it is answered.
#[derive(Debug)]
pub struct Unanswered<'a> {
    kind: &'static str,
    method: &'a str,
    since: Instant,
    answered: bool,
}

impl<'a> Unanswered<'a> {
    /// From now on.
    #[must_use]
    pub fn new(kind: &'static str, method: &'a str, since: Instant) -> Self {
        Self { kind, method, since, answered: false }
    }

    /// It has a line of its own.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let (kind, duration_ms) = (self.kind, millis(self.since.elapsed()));
            tracing::info!(target: REQUEST, method = self.method, outcome = "gone", duration_ms, "{kind}");
        }
    }
}

/// Writes events as lines.
pub struct Lines {
    json: Format<Json>,
    /// The first members of each line.
    head: String,
    share: f64,
}

impl Lines {
    /// Those of this release of a service, of this share of traces (0 to 1).
    pub fn new(service: &str, release: &str, share: f64) -> Self {
        let head = format!("{{\"service\":{},\"release\":{}", json(service), json(release));
        Self {
            json: tracing_subscriber::fmt::format()
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .with_current_span(false),
            head,
            share,
        }
    }
}

fn json(text: &str) -> serde_json::Value {
    text.into()
}

/// Whether a trace's lines and spans are kept: the id alone decides, in every service alike. Uses the low eight bytes, like OpenTelemetry's
/// ratio sampler.
#[must_use]
pub fn is_sampled(trace_id: &str, share: f64) -> bool {
    let Ok(id) = TraceId::from_hex(trace_id) else { return true };
    let low = u128::from_be_bytes(id.to_bytes()) as u64 >> 1;
    share >= 1.0 || low < (share * (1_u64 << 63) as f64) as u64
}

/// The traces that an event itself names.
#[derive(Default)]
struct Named(Option<String>);

impl Visit for Named {
    fn record_str(&mut self, field: &Field, value: &str) {
        if ["trace_id", "trace_ids"].contains(&field.name()) {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut named = Named::default();
        event.record(&mut named);
        let metadata = event.metadata();
        // The tracing library may log while it holds the span that this would query.
        let asked = named.0.is_none() && !metadata.target().starts_with("opentelemetry");
        let current = if asked { trace::trace_id() } else { None };
        if self.share < 1.0 && *metadata.level() >= Level::INFO && SAMPLED.contains(&metadata.target()) {
            let traces = named.0.as_deref().or(current.as_deref()).unwrap_or_default();
            if !traces.split(',').any(|trace_id| is_sampled(trace_id, self.share)) {
                return Ok(());
            }
        }
        let mut line = String::with_capacity(512);
        self.json.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&self.head)?;
        if let Some(trace_id) = current {
            write!(writer, ",\"trace_id\":\"{trace_id}\"")?;
        }
        // The formatter's line is an object of its own: ours continues with its members.
        writer.write_char(',')?;
        writer.write_str(line.strip_prefix('{').unwrap_or(&line))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines(share: f64, log: impl FnOnce()) -> Vec<serde_json::Value> {
        let written = Written::default();
        let to = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .event_format(Lines::new("todo", "1.2 \"x\"", share))
            .with_writer(move || to.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_is_one_object_that_says_whose_it_is() {
        let lines = lines(1.0, || {
            tracing::info!(target: "outbox::published", trace_ids = "a,b", rows = 2, "published");
            tracing::error!(reason = "a \"quote\"\nand a line", "it failed");
        });
        assert_eq!((&lines[0]["service"], &lines[0]["release"]), (&"todo".into(), &"1.2 \"x\"".into()));
        assert_eq!((&lines[0]["trace_ids"], &lines[0]["rows"]), (&"a,b".into(), &2.into()));
        assert_eq!((&lines[1]["level"], &lines[1]["reason"]), (&"ERROR".into(), &"a \"quote\"\nand a line".into()));
    }

    #[test]
    fn a_request_leaves_one_line_whatever_becomes_of_it() {
        let line = |outcome, status| {
            let (method, took) = ("GET /v1/todos/{id}", Duration::from_micros(1_500));
            Line {
                kind: "request",
                method,
                who: None,
                code: "C",
                status,
                outcome,
                took,
                events: None,
                replayed: false,
                degraded: None,
            }
            .write();
        };
        let lines = lines(0.0, || {
            line(Outcome::Done, 200);
            line(Outcome::Refused, 404);
            line(Outcome::Failed, 503);
        });
        assert_eq!(lines.len(), 3, "without a trace, nothing is left out: {lines:?}");
        let is =
            |n: usize| (lines[n]["outcome"].as_str(), lines[n]["level"].as_str(), lines[n]["duration_ms"].as_f64());
        assert_eq!(is(0), (Some("done"), Some("INFO"), Some(1.5)));
        assert_eq!(is(1), (Some("refused"), Some("INFO"), Some(1.5)));
        assert_eq!(is(2), (Some("failed"), Some("WARN"), Some(1.5)));
        let gone = super::tests::lines(1.0, || {
            drop(Unanswered::new("call", "m", Instant::now()));
            Unanswered::new("call", "m", Instant::now()).answered();
        });
        assert_eq!((gone.len(), &gone[0]["outcome"]), (1, &"gone".into()));
    }

    #[test]
    fn of_what_goes_well_a_share_of_the_traces_is_written_and_of_what_fails_all() {
        let trace = |n: u64| format!("0000000000000001{:016x}", n << 1);
        let (kept, left) = (trace(1_u64 << 60), trace((1_u64 << 62) + 1));
        assert!(is_sampled(&kept, 0.25) && !is_sampled(&left, 0.25));
        assert!(!is_sampled(&kept, 0.0) && is_sampled(&left, 1.0));
        let both = format!("{left},{kept}");
        let lines = lines(0.25, || {
            for trace_id in [&kept, &left] {
                tracing::info!(target: "request", trace_id, "request");
                tracing::warn!(target: "request", trace_id, "request");
                tracing::info!(target: "other", trace_id, "other");
            }
            tracing::info!(target: "outbox::published", trace_ids = both, "published");
            tracing::info!(target: "outbox::published", trace_ids = left, "published");
        });
        let written = |level: &str, target: &str| {
            lines.iter().filter(|line| line["level"] == level && line["target"] == target).count()
        };
        assert_eq!((written("INFO", "request"), written("WARN", "request")), (1, 2));
        assert_eq!((written("INFO", "other"), written("INFO", "outbox::published")), (2, 1));
    }
}
