//! Three servers, of which one fails: consumers, dead letters and replays go on.

use std::collections::BTreeSet;
use std::time::Duration;

use testkit::until_within;

use crate::harness::{Harness, PACE, consumer_of, never};

/// A server is found to be down, a dozen streams get new leaders, and pulls begin again. A busy machine adds to that.
const PATIENCE: Duration = Duration::from_secs(90);

async fn publish(harness: &Harness, aggregate: &str, version: i32) {
    let event = Harness::event(aggregate, version).to_string();
    until_within(PATIENCE, "the event is stored", || harness.publish_bytes(event.clone())).await;
}

/// Waits until each stream of the test is complete on all three servers.
async fn until_whole(harness: &Harness) {
    for (js, names) in [(&harness.js, &["EVENTS_TODO"][..]), (&harness.records, &["DLQ", "REPLAY", "ADVISORIES"])] {
        for name in names {
            until_within(PATIENCE, &format!("{name} is on all servers"), || async {
                let Ok(stream) = js.get_stream(name).await else { return false };
                let info = stream.cached_info();
                assert_eq!(info.config.num_replicas, 3, "{name}");
                info.cluster.as_ref().is_some_and(|cluster| {
                    cluster.leader.is_some() && cluster.replicas.iter().all(|replica| replica.current)
                })
            })
            .await;
        }
    }
}

#[tokio::test]
async fn each_of_three_servers_may_die_while_consumers_and_operators_work() {
    let mut harness = Harness::on_a_cluster().await;
    let service = harness.operations().await;
    harness.ordered("ledger").await;
    let mut printers = vec![harness.consumer("printer", never).await];
    let mut version = 0;
    for round in 0..3_usize {
        until_whole(&harness).await;
        harness.break_again();
        harness.down = Some(round);
        harness.nats[round].kill().await;
        // One more process, which starts while a server is down.
        printers.push(harness.consumer("printer", never).await);
        for aggregate in ["a", "b"] {
            publish(&harness, aggregate, 10 * version + 1).await;
            publish(&harness, aggregate, 10 * version + 3).await;
        }
        version += 1;
        let wanted = 4 * i64::from(version);
        until_within(PATIENCE, "the ledger has all", || async {
            harness.effects().await.values().map(Vec::len).sum::<usize>() == usize::try_from(wanted).unwrap()
        })
        .await;
        until_within(PATIENCE, "the printer's are letters", || async { harness.stats().await.letters == wanted }).await;
        // An operator replays them, with the server still down.
        harness.mend();
        let job = harness.replay(&consumer_of("printer"), PACE).await;
        until_within(PATIENCE, "they are replayed", || async {
            let job = harness.job(job).await;
            job.has_ended() && job.sent == 0
        })
        .await;
        let job = harness.job(job).await;
        assert_eq!((job.state.as_str(), job.handled, job.failed), ("done", 4, 0), "{job:?}");
        // Any process of the printer may have handled them, those of earlier rounds too.
        let handled: BTreeSet<_> = printers.iter().flat_map(|each| each.lock().unwrap().clone()).collect();
        assert_eq!(handled.len(), 4 * (round + 1), "{handled:?}");
        harness.nats[round].restart().await;
        harness.down = None;
    }
    for versions in harness.effects().await.values() {
        assert_eq!(versions, &[1, 3, 11, 13, 21, 23], "in order, and once");
    }
    harness.stop(service).await;
}
