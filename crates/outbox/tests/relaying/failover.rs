//! Leader and standby, as processes: killed, paused, cut off, and on three servers of which one fails. Order holds, and
//! nothing is there twice.

use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use nix::sys::signal::Signal;
use testkit::{SlowApi, TestDatabase, TestNats, TestProxy, until, until_within};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fixture::{STREAM, Setup, app, database, event, ids, relay, rows};

/// How long a new leader may take: a lease, a connection, and what a busy machine adds.
const TAKE_OVER: Duration = Duration::from_secs(60);
/// The variable that makes a process of these tests a relay.
const SETUP: &str = "OUTBOX_TESTS_RELAY";

/// Relays until it is killed, or its parent has ended. In a run of the tests it does nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the process that the tests beside it start"]
async fn a_process_that_relays() {
    let Ok(setup) = std::env::var(SETUP) else { return };
    let relay = relay(&serde_json::from_str(&setup).unwrap()).await;
    let (mut starter, mut nothing) = (tokio::io::stdin(), tokio::io::sink());
    tokio::select! {
        () = relay.run(CancellationToken::new()) => {}
        _ = tokio::io::copy(&mut starter, &mut nothing) => {}
    }
}

/// An address, by another port of this machine.
fn through(url: String, port: Option<u16>) -> String {
    let Some(port) = port else { return url };
    let (login, rest) = url.rsplit_once(':').unwrap();
    let path = rest.split_once('/').map_or(String::new(), |(_, path)| format!("/{path}"));
    format!("{login}:{port}{path}")
}

struct Relays {
    database: TestDatabase,
    nats: Vec<TestNats>,
    written: i64,
}

impl Relays {
    async fn on(nats: Vec<TestNats>) -> Self {
        Self { database: database().await, nats, written: 0 }
    }

    /// A process that relays when it leads: this program, run for one test alone. Its connections may lead through a proxy.
    fn process(&self, postgres_port: Option<u16>, nats_port: Option<u16>) -> Child {
        let setup = Setup::of(&self.database, &self.nats[0], self.nats.len());
        let setup =
            Setup { database: through(setup.database, postgres_port), nats: through(setup.nats, nats_port), ..setup };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "failover::a_process_that_relays"]);
        command.env(SETUP, serde_json::to_string(&setup).unwrap()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Writes events of five aggregates, each in a transaction of its own.
    async fn write(&mut self, events: i64) {
        let mut app = app(&self.database).await;
        for number in self.written..self.written + events {
            outbox::append(&mut app, &event(&format!("order {}", number % 5))).await.unwrap();
        }
        self.written += events;
    }

    async fn epoch(&self) -> i64 {
        let mut admin = self.database.admin().await;
        sqlx::query_scalar("select epoch from outbox_relay").fetch_one(&mut admin).await.unwrap()
    }

    /// The leader, by its own name.
    async fn holder(&self) -> Option<Uuid> {
        let mut admin = self.database.admin().await;
        sqlx::query_scalar("select holder from outbox_relay").fetch_one(&mut admin).await.unwrap()
    }

    async fn until_led_anew(&self, since: i64) {
        until_within(TAKE_OVER, "another relay leads", || async { self.epoch().await > since }).await;
    }

    /// The stream, by a server that is up.
    async fn stream(&self, server: usize) -> Option<Stream> {
        self.nats[server].jetstream().await.get_stream(STREAM).await.ok()
    }

    async fn until_stored(&self, server: usize) {
        let wanted = u64::try_from(self.written).unwrap();
        until_within(TAKE_OVER, &format!("{wanted} events are stored"), || async {
            let Some(stream) = self.stream(server).await else { return false };
            stream.get_info().await.is_ok_and(|info| info.state.messages >= wanted)
        })
        .await;
    }

    /// Everything that was written is in the stream, once, in its order.
    async fn assert_whole(&self, server: usize) {
        self.until_stored(server).await;
        let stored = ids(&self.stream(server).await.unwrap()).await;
        assert_eq!(stored, rows(&self.database).await);
    }
}

fn signal(process: &Child, signal: Signal) {
    devstack::process::signal(process.id().unwrap(), signal).unwrap();
}

#[tokio::test]
async fn o3_a_killed_leader_is_replaced_by_the_standby() {
    let mut relays = Relays::on(vec![TestNats::start().await]).await;
    let mut leader = relays.process(None, None);
    relays.write(50).await;
    relays.until_stored(0).await;
    let _standby = relays.process(None, None);
    let epoch = relays.epoch().await;
    relays.write(200).await;
    leader.kill().await.unwrap();
    relays.write(200).await;
    relays.until_led_anew(epoch).await;
    relays.write(50).await;
    relays.assert_whole(0).await;
}

#[tokio::test]
async fn o3_a_leader_that_was_paused_for_longer_than_its_lease_is_refused() {
    let mut relays = Relays::on(vec![TestNats::start().await]).await;
    let leader = relays.process(None, None);
    relays.write(50).await;
    relays.until_stored(0).await;
    let epoch = relays.epoch().await;
    signal(&leader, Signal::SIGSTOP);
    let _standby = relays.process(None, None);
    relays.write(200).await;
    relays.until_led_anew(epoch).await;
    // Both are at it for a moment: the stale one with what it had in memory.
    signal(&leader, Signal::SIGCONT);
    relays.write(500).await;
    relays.assert_whole(0).await;
}

#[tokio::test]
async fn o3_a_leader_that_is_cut_off_from_its_database_gives_up_the_lead() {
    let mut relays = Relays::on(vec![TestNats::start().await]).await;
    let (_, server) = relays.database.relay.rsplit_once(':').unwrap();
    let proxy = TestProxy::to(server.split('/').next().unwrap().parse().unwrap()).await;
    let _leader = relays.process(Some(proxy.port), None);
    relays.write(50).await;
    relays.until_stored(0).await;
    let epoch = relays.epoch().await;
    let _standby = relays.process(None, None);
    proxy.cut().await;
    relays.write(200).await;
    relays.until_led_anew(epoch).await;
    relays.until_stored(0).await;
    proxy.mend().await;
    relays.write(200).await;
    relays.assert_whole(0).await;
}

#[tokio::test]
async fn o2_a_leader_that_is_cut_off_from_the_broker_goes_on_when_it_is_back() {
    let mut relays = Relays::on(vec![TestNats::start().await]).await;
    let proxy = TestProxy::to(relays.nats[0].port()).await;
    let _leader = relays.process(None, Some(proxy.port));
    relays.write(50).await;
    relays.until_stored(0).await;
    proxy.cut().await;
    relays.write(200).await;
    proxy.mend().await;
    relays.write(50).await;
    relays.assert_whole(0).await;
}

#[tokio::test]
async fn o3_a_leader_that_is_cut_off_from_the_broker_alone_leaves_the_lead_to_the_standby() {
    let mut relays = Relays::on(vec![TestNats::start().await]).await;
    let proxy = TestProxy::to(relays.nats[0].port()).await;
    let _leader = relays.process(None, Some(proxy.port));
    relays.write(50).await;
    relays.until_stored(0).await;
    let cut_off = relays.holder().await;
    let _standby = relays.process(None, None);
    proxy.cut().await;
    relays.write(200).await;
    // Not the one that is cut off, again and again: within a wait for an answer, a query, and a poll of the standby.
    until_within(Duration::from_secs(30), "the standby leads", || async {
        relays.holder().await.is_some_and(|holder| Some(holder) != cut_off)
    })
    .await;
    relays.until_stored(0).await;
    proxy.mend().await;
    relays.write(200).await;
    relays.assert_whole(0).await;
}

#[tokio::test]
async fn o2_a_broker_that_answers_questions_late_and_stores_at_once_is_published_to() {
    let mut relays = Relays::on(vec![TestNats::start().await]).await;
    let slow = SlowApi::to(relays.nats[0].port(), Duration::from_secs(5)).await;
    relays.write(50).await;
    let _leader = relays.process(None, Some(slow.port));
    relays.until_stored(0).await;
    let epoch = relays.epoch().await;
    // Queries to the stream are late as well: publishing goes on meanwhile, in the same lead.
    for _ in 0..10 {
        relays.write(20).await;
        relays.until_stored(0).await;
    }
    assert_eq!(relays.epoch().await, epoch);
    relays.assert_whole(0).await;
}

#[tokio::test]
async fn o3_a_stream_leader_of_three_that_dies_under_load_loses_and_reorders_nothing() {
    let mut relays = Relays::on(TestNats::cluster().await).await;
    let mut leader = relays.process(None, None);
    let _standby = relays.process(None, None);
    relays.write(100).await;
    relays.until_stored(0).await;
    let info = relays.stream(0).await.unwrap().get_info().await.unwrap();
    assert_eq!(info.config.num_replicas, 3);
    let name = info.cluster.unwrap().leader.unwrap();
    let number: usize = name.rsplit('-').next().unwrap().parse().unwrap();
    let alive = (number + 1) % 3;
    relays.write(300).await;
    relays.nats[number].kill().await;
    relays.write(300).await;
    relays.until_stored(alive).await;
    relays.nats[number].restart().await;
    // And the relay's leader as well.
    leader.kill().await.unwrap();
    relays.write(100).await;
    relays.assert_whole(alive).await;
    until("the server is back among the replicas", || async {
        let info = relays.stream(alive).await.unwrap().get_info().await.unwrap();
        info.cluster.unwrap().replicas.iter().all(|replica| replica.current)
    })
    .await;
}
