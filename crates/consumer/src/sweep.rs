//! Keeps the inbox small while a process leads.

use std::time::Duration;

use crate::inbox::Inbox;

const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// After so many sweeps the next one begins with the oldest again.
const SWEEPS_OVER: u32 = 144;
const SWEEP_PAUSE: Duration = Duration::from_millis(50);

/// Forgets what was handled long ago, for as long as this process leads. Each sweep starts where the last one ended: while
/// a long transaction holds on to what was deleted, the index still has it.
pub async fn run(inbox: &Inbox, consumer: &str) -> Result<(), anyhow::Error> {
    let mut from = None;
    for round in 0_u32.. {
        tokio::time::sleep(SWEEP_EVERY).await;
        // What a clock that ran back has put behind.
        if round.is_multiple_of(SWEEPS_OVER) {
            from = None;
        }
        while let Ok((swept, up_to)) = inbox.sweep(consumer, from).await {
            from = up_to.or(from);
            if swept < 1_000 {
                break;
            }
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
    }
    Ok(())
}
