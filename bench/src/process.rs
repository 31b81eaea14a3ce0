//! The kernel's figures of a process.

use std::convert::Infallible;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::MissedTickBehavior;

use crate::report::figure;

/// Waits until a process takes connections there.
pub async fn listens(process: &mut Child, address: &str) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    while TcpStream::connect(address).await.is_err() {
        tick.tick().await;
        anyhow::ensure!(process.try_wait()?.is_none(), "what should listen on {address} has ended");
    }
    Ok(())
}

/// CPU time of a process and its threads, user and system.
pub fn cpu(pid: u32) -> Duration {
    spent(&format!("/proc/{pid}/stat"), 11)
}

/// CPU time of one thread of this process.
pub fn cpu_of_thread(id: i32) -> Duration {
    spent(&format!("/proc/self/task/{id}/stat"), 11)
}

/// Fields of `/proc/PID/stat` from the one after the name on: 11 and 12 are of the process, 13 and 14 of its children that
/// have ended.
fn spent(stat: &str, first: usize) -> Duration {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    // The fields after the program's name, which may hold blanks; user and system time in ticks of 10 ms.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(first) + ticks(first + 1)) * 10)
}

/// CPU time of a process and all its children, those that have ended included.
pub fn cpu_with_children(pid: u32) -> Duration {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    cpu(pid) + spent(&format!("/proc/{pid}/stat"), 13) + children.map(cpu_with_children).sum::<Duration>()
}

/// The share of the processors that other guests of the machine took (`steal`), second by second. A second of which they took
/// much says nothing reliable about this program.
#[derive(Default)]
pub struct Guests {
    /// The end of each second, and the share of the processors that was taken in it, from 0 to 1.
    seconds: Vec<(DateTime<Utc>, f64)>,
}

impl Guests {
    /// The most that they may take of a quiet second.
    const QUIET: f64 = 0.05;

    /// Watches until it is dropped.
    pub async fn watch(&mut self) -> Infallible {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        // After a stall the next second is a whole one too.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        let mut before = ticks();
        loop {
            tick.tick().await;
            let now = ticks();
            let spent: [u64; 8] = std::array::from_fn(|kind| now[kind].saturating_sub(before[kind]));
            self.seconds.push((Utc::now(), spent[7] as f64 / spent.iter().sum::<u64>().max(1) as f64));
            before = now;
        }
    }

    /// Whether all seconds of this period were quiet.
    pub fn quiet(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> bool {
        let of = |at| self.seconds.partition_point(|(end, _)| *end < at);
        self.seconds.get(of(from)..=of(to)).is_some_and(|all| all.iter().all(|(_, share)| *share <= Self::QUIET))
    }

    /// Prints what they took in each run; returns the label of the quiet seconds, for their own figure.
    pub fn tell(runs: &[&Self]) -> String {
        let shares = |run: &Self| run.seconds.iter().map(|(_, share)| *share).collect::<Vec<_>>();
        let taken = runs.iter().map(|run| {
            let shares = shares(run);
            format!("{:.1}", shares.iter().sum::<f64>() / shares.len() as f64 * 100.0)
        });
        let taken: Vec<String> = taken.collect();
        figure("  taken by other guests of the machine", &format!("{} % of the processors", taken.join(", ")));
        let all: Vec<f64> = runs.iter().flat_map(|run| shares(run)).collect();
        let quiet = all.iter().filter(|share| **share <= Self::QUIET).count();
        format!("  in those {quiet} of {} s in which it was at most {:.0} %", all.len(), Self::QUIET * 100.0)
    }
}

/// The time of all processors since the start, in ticks: user, nice, system, idle, iowait, irq, softirq, steal.
fn ticks() -> [u64; 8] {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let mut ticks = text.lines().next().unwrap_or_default().split_whitespace().skip(1).map(str::parse);
    std::array::from_fn(|_| ticks.next().and_then(Result::ok).unwrap_or(0))
}

fn status(pid: u32, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Resident memory now, in MiB.
pub fn resident(pid: u32) -> f64 {
    status(pid, "VmRSS")
}

/// Peak resident memory, in MiB.
pub fn peak(pid: u32) -> f64 {
    status(pid, "VmHWM")
}
