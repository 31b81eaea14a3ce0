//! What the kernel says of a process.

use std::time::Duration;

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

fn status(pid: u32, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Resident memory now, in MiB.
pub fn resident(pid: u32) -> f64 {
    status(pid, "VmRSS")
}

/// The most that was ever resident, in MiB.
pub fn peak(pid: u32) -> f64 {
    status(pid, "VmHWM")
}
