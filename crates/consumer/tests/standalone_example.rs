//! The examples, as an external user runs them: a shop that publishes, a ledger that consumes.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;
use std::process::Stdio;

use sqlx::Connection as _;
use testkit::{TestDatabase, TestNats, backing, until};
use tokio::process::{Child, Command};

fn example(name: &str, database: &TestDatabase, nats: &TestNats) -> Command {
    let program: PathBuf = backing::programs().join("examples").join(name);
    assert!(program.exists(), "{} is missing: run `cargo build --workspace --all-targets` first", program.display());
    let mut command = Command::new(program);
    command.env("DATABASE_URL", &database.superuser).env("NATS_URL", nats.url());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn entries(database: &TestDatabase) -> i64 {
    let mut db = database.admin().await;
    let entries = sqlx::query_scalar("select count(*) from ledger").fetch_one(&mut db).await.unwrap_or(0);
    db.close().await.unwrap();
    entries
}

#[tokio::test]
async fn a_shop_and_its_ledger_agree_though_the_ledger_dies() {
    let (nats, shop, books) = tokio::join!(
        TestNats::alone(),
        TestDatabase::with(&[
            include_str!("../../outbox/schema/outbox.sql"),
            include_str!("../../outbox/schema/outbox_operations.sql"),
            include_str!("../../outbox/schema/outbox_retention.sql"),
        ]),
        TestDatabase::with(&[include_str!("../schema/inbox.sql")]),
    );
    let output = example("orders", &shop, &nats).arg("25").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("ordered")).count(), 25);
    let mut ledger: Child = example("ledger", &books, &nats).spawn().unwrap();
    until("some orders are in the ledger", || async { entries(&books).await > 0 }).await;
    ledger.kill().await.unwrap();
    let output = example("orders", &shop, &nats).arg("25").output().await.unwrap();
    assert!(output.status.success());
    let mut ledger = example("ledger", &books, &nats).spawn().unwrap();
    until("all orders are in the ledger", || async { entries(&books).await == 50 }).await;
    devstack::process::signal(ledger.id().unwrap(), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(ledger.wait().await.unwrap().success(), "it ends when it is asked to");
}
