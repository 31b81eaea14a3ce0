//! `outbox` and `consumer` as a stranger takes them: packaged, in a program outside this workspace that is the first lines of their
//! READMEs, on a real PostgreSQL and a real nats-server.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use devstack::nats::Layout;
use e2e::workspace;
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use testkit::{TestDatabase, TestNats, backing, until};
use tokio::process::Command;

/// The version of all crates here.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs cargo; nothing of this test's own build reaches it.
async fn cargo(folder: &Path, args: &[&str]) {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(folder).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO")) {
        if name != "CARGO_HOME" {
            command.env_remove(name);
        }
    }
    let output = command.env("CARGO_NET_OFFLINE", "true").env("CARGO_INCREMENTAL", "0").output().await.unwrap();
    assert!(output.status.success(), "cargo {args:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The first part of a README in this language.
fn part(readme: &Path, language: &str) -> String {
    let text = fs::read_to_string(readme).unwrap();
    let begin = format!("```{language}\n");
    text.split_once(&begin).and_then(|(_, rest)| rest.split_once("```\n")).unwrap().0.to_owned()
}

/// The first program of a README.
fn program(readme: &Path) -> String {
    let code = part(readme, "rust,no_run");
    let lines = code.lines().filter(|line| !line.is_empty()).count();
    assert!(lines <= 25, "{}: {lines} lines", readme.display());
    code
}

/// Packages both crates, and builds the program; returns the folder of its two commands, and the lock on it.
async fn build() -> (PathBuf, File) {
    let folder = backing::home().with_file_name("packaged");
    let lock = File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(folder.join("program/src/bin")).unwrap();
    let package = folder.join("package").to_str().unwrap().to_owned();
    let args = ["package", "--package", "outbox", "--package", "consumer", "--no-verify", "--allow-dirty", "--quiet"];
    cargo(workspace(), &[&args[..], &["--target-dir", &package]].concat()).await;
    let mut dependencies = BTreeSet::new();
    for (name, command) in [("outbox", "publish"), ("consumer", "consume")] {
        let archive = folder.join(format!("package/package/{name}-{VERSION}.crate"));
        let tar = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(&folder).status().await.unwrap();
        assert!(tar.success());
        assert!(
            fs::read_to_string(folder.join(format!("{name}-{VERSION}/LICENSE"))).unwrap().contains("Apache License")
        );
        let readme = folder.join(format!("{name}-{VERSION}/README.md"));
        let code = program(&readme);
        let wanted = part(&readme, "toml").replace(&format!("flotilla/crates/{name}"), &format!("../{name}-{VERSION}"));
        dependencies.extend(wanted.lines().skip(1).map(ToOwned::to_owned));
        fs::write(folder.join(format!("program/src/bin/{command}.rs")), code).unwrap();
    }
    // The same versions and profile as here, so that what was built once serves both.
    fs::copy(workspace().join("Cargo.lock"), folder.join("program/Cargo.lock")).unwrap();
    let ours = fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    let profile = &ours[ours.find("[profile.dev]").unwrap()..];
    let dependencies = dependencies.into_iter().collect::<Vec<_>>().join("\n");
    let manifest = format!(
        "[package]\nname = \"shop\"\nedition = \"2024\"\n\n[dependencies]\n{dependencies}\n\n[workspace]\n\n{profile}"
    );
    fs::write(folder.join("program/Cargo.toml"), manifest).unwrap();
    // The crates are no members of the workspace in whose folder they lie.
    fs::write(folder.join("Cargo.toml"), "[workspace]\n").unwrap();
    let target = backing::programs().parent().unwrap().to_str().unwrap().to_owned();
    cargo(&folder.join("program"), &["build", "--quiet", "--target-dir", &target]).await;
    (PathBuf::from(target).join("debug"), lock)
}

#[tokio::test]
async fn the_first_lines_of_the_readmes_run_with_the_packaged_crates() {
    let ((programs, _lock), nats, database) =
        tokio::join!(build(), TestNats::laid_out(Layout::Text(String::new())), TestDatabase::with(&[]));
    // The role of the READMEs, the owner of its database.
    let mut admin = database.admin().await;
    let name: String = sqlx::query_scalar("select current_database()::text").fetch_one(&mut admin).await.unwrap();
    // One for all runs, which share this server.
    admin
        .execute(
            "do $$ begin create role shop; exception when duplicate_object or unique_violation then null; end $$; \
             alter role shop login password 'shop'",
        )
        .await
        .unwrap();
    admin.execute(AssertSqlSafe(format!("alter database {name} owner to shop"))).await.unwrap();
    let url = database.superuser.split_once('@').unwrap().1;
    let run = |command: &str| {
        let mut program = Command::new(programs.join(command));
        program.env("DATABASE_URL", format!("postgres://shop:shop@{url}")).env("NATS_URL", nats.address());
        program.stdin(Stdio::null()).kill_on_drop(true);
        program
    };
    let publish = async || {
        let output = run("publish").output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    publish().await;
    let mut consumer = run("consume").spawn().unwrap();
    let entries = async |admin: &mut PgConnection| -> Vec<String> {
        sqlx::query_scalar("select paid_order from ledger").fetch_all(admin).await.unwrap_or_default()
    };
    let other = tokio::sync::Mutex::new(admin);
    until("the order is in the ledger", || async { entries(&mut *other.lock().await).await == ["7"] }).await;
    // The same event a second time, and a second start of both.
    publish().await;
    let js = async_nats::jetstream::new(async_nats::connect(nats.address()).await.unwrap());
    until("the second is handled too", || async {
        let stream = js.get_stream("EVENTS_SHOP").await.unwrap();
        let info = stream.consumer_info("ledger").await.unwrap();
        info.ack_floor.stream_sequence == 2
    })
    .await;
    assert_eq!(entries(&mut *other.lock().await).await, ["7"], "one event takes effect once");
    devstack::process::signal(consumer.id().unwrap(), Signal::SIGINT).unwrap();
    assert!(consumer.wait().await.unwrap().success());
    let mut admin = other.into_inner();
    let release = format!("alter database {name} owner to current_user");
    admin.execute(AssertSqlSafe(release)).await.unwrap();
    admin.execute("drop owned by shop").await.unwrap();
    admin.close().await.unwrap();
}
