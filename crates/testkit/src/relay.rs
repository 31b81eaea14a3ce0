//! What a service's harness asserts last: everything that is committed can be published.

use outbox::connections::pool_options;
use outbox::{Relay, RelayConfig, Role};
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use crate::{PATIENCE, TestDatabase, TestNats};

/// Publishes what is left of a service's outbox, and asserts that nothing remains: the relay neither halts nor stands still. It runs
/// on a thread of its own, so that a harness can call it when it is dropped. Does nothing while a test fails, or once its nats-server is
/// gone.
///
/// # Panics
/// The relay halts, or does not publish everything in time.
pub fn assert_caught_up(service: &'static str, database: &TestDatabase, nats: &TestNats) {
    if std::thread::panicking() || std::net::TcpStream::connect(("127.0.0.1", nats.port())).is_err() {
        return;
    }
    std::thread::scope(|scope| {
        let checked = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let caught_up = tokio::time::timeout(2 * PATIENCE, Box::pin(catch_up(service, database, nats)));
                caught_up.await.expect("a test holds on to the outbox, or its database is gone");
            });
        });
        if let Err(panic) = checked.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

async fn catch_up(service: &'static str, database: &TestDatabase, nats: &TestNats) {
    let mut admin = database.admin().await;
    // The process of the test no longer relays: its lease need not run out.
    let freed = "update outbox_relay set holder = null, epoch = epoch + 1, expires_at = '-infinity'";
    sqlx::query(freed).execute(&mut admin).await.unwrap();
    let newest: i64 =
        sqlx::query_scalar("select coalesce(max(seq), 0) from outbox").fetch_one(&mut admin).await.unwrap();
    let stream = fleet::stream(service, devstack::nats::Wanted::default().max_age, 1);
    let db = pool_options(3).connect(&database.relay).await.unwrap();
    let client = nats.client(service).await;
    // Its login may hint on this subject and on no other.
    let config = RelayConfig { hint_subject: format!("hint.outbox.{service}"), ..RelayConfig::from(stream) };
    let (relay, stop) = (Relay::new(db, client, config), CancellationToken::new());
    let mut status = relay.handle().status();
    let published = async {
        let caught_up = status.wait_for(|status| status.done >= newest || matches!(status.role, Role::Halted { .. }));
        let reached = tokio::time::timeout(PATIENCE, caught_up).await.map(|status| status.unwrap().clone());
        stop.cancel();
        reached
    };
    let (reached, ()) = tokio::join!(published, relay.run(stop.clone()));
    let reached =
        reached.unwrap_or_else(|_| panic!("the relay of {service} does not reach row {newest} of its outbox"));
    assert!(!matches!(reached.role, Role::Halted { .. }), "the relay of {service}: {:?}", reached.role);
    // Parked rows count as done.
    let parked: Vec<String> =
        sqlx::query_scalar("select subject || ': ' || reason from outbox_parked where state = 'parked' order by seq")
            .fetch_all(&mut admin)
            .await
            .unwrap();
    assert!(parked.is_empty(), "the relay of {service} has parked {parked:?}");
    admin.close().await.unwrap();
}
