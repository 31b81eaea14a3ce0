//! The drill: backups, a fleet of which nothing is left, and its restore to a moment, by the command alone.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use devstack::StackDir;
use devstack::process::{is_alive, signal};
use devstack::stack::STATUS_FILE;
use devstack::supervisor::{now, read_status};
use e2e::{Caller, flotilla};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::{unique, until};
use tokio::process::{ChildStdin, Command};

/// A folder that has a fleet now and then. Nothing is left of it when this is dropped, or when the test is killed.
struct Folder {
    home: PathBuf,
    repository: PathBuf,
    /// The fleet stops when this is closed.
    fleet: Option<ChildStdin>,
}

impl Folder {
    /// Runs the command; Err is what it complains about.
    async fn run(&self, args: &[&str]) -> Result<Value, String> {
        self.ran(args).await.0
    }

    /// The same of one that leaves a fleet behind.
    async fn start(&mut self, args: &[&str]) -> Result<Value, String> {
        let (answer, input) = self.ran(args).await;
        self.fleet = input;
        answer
    }

    async fn ran(&self, args: &[&str]) -> (Result<Value, String>, Option<ChildStdin>) {
        let mut command = Command::new(flotilla());
        command.arg("--home").arg(&self.home).arg("--json").args(args).kill_on_drop(true);
        // By file: the fleet in the background keeps what it has inherited.
        let said = self.home.with_extension("said");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(std::fs::File::create(&said).unwrap());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let output = child.wait_with_output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answer = if output.status.success() {
            Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
        } else {
            Err(std::fs::read_to_string(&said).unwrap() + &text)
        };
        (answer, input)
    }

    async fn restore(&mut self, to: DateTime<Utc>, more: &[&str]) -> Result<Value, String> {
        self.restore_to(&to.to_rfc3339_opts(SecondsFormat::Micros, true), more).await
    }

    async fn restore_to(&mut self, to: &str, more: &[&str]) -> Result<Value, String> {
        let repository = self.repository.to_str().unwrap().to_owned();
        let args = ["restore", "--repository", &repository, "--to", to, "--user", "olga", "--reason", "the drill"];
        let up = ["--yes", "--any-ports", "--until-stdin-ends"];
        let port: &[&str] = if more.contains(&"--gateway-port") { &[] } else { &["--gateway-port", "0"] };
        self.start(&[&args[..], &up[..], port, more].concat()).await
    }

    async fn down(&mut self) {
        self.run(&["down"]).await.unwrap();
        self.fleet = None;
    }

    /// Waits until the status says that the log cannot be archived, or says it no more.
    async fn until_degraded(&self, fails: bool) {
        until("the status has changed", || async {
            let status = self.run(&["status"]).await.unwrap();
            status["degraded"].to_string().contains("cannot be archived") == fails
        })
        .await;
    }

    async fn ann(&self) -> Caller {
        self.caller("acme", "ann").await
    }

    async fn caller(&self, tenant: &str, user: &str) -> Caller {
        let token = self.run(&["token", "--tenant", tenant, "--user", user]).await.unwrap();
        let gateway = read_status(&self.home.join(STATUS_FILE)).unwrap().unit("gateway").unwrap().address.clone();
        Caller::of(&self.home, &format!("http://{gateway}"), token["token"].as_str().unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.fleet = None;
        let lock = std::fs::File::create(self.home.join(devstack::stack::LOCK));
        // Until the fleet has stopped.
        if lock.is_ok_and(|lock| lock.lock().is_ok()) {
            StackDir::open(&self.home).and_then(|home| home.wipe()).ok();
        }
        std::fs::remove_dir_all(&self.repository).ok();
        std::fs::remove_file(self.home.with_extension("said")).ok();
    }
}

/// The files below a folder, and when each was written last.
fn files(folder: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            let at = path.metadata().unwrap().modified().unwrap();
            all.push((path, at));
        }
    }
    all.sort();
    all
}

/// Whether a file below a folder holds this text.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            holds(&path, text)
        } else {
            std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
        }
    })
}

/// A moment behind everything that was answered, and before everything that follows. The database tells time in microseconds.
fn between() -> DateTime<Utc> {
    let at = now();
    while now() <= at + TimeDelta::milliseconds(2) {
        std::hint::spin_loop();
    }
    at + TimeDelta::milliseconds(1)
}

/// Ends a segment of the log, as a minute does.
async fn switch(folder: &Folder) {
    let status = read_status(&folder.home.join(STATUS_FILE)).unwrap();
    let url = status.unit("postgres").unwrap().login_url().unwrap();
    let mut database = PgConnection::connect(&url).await.unwrap();
    database.execute("select pg_logical_emit_message(false, 'drill', 'x'), pg_switch_wal()").await.unwrap();
}

async fn until_published(ann: &Caller, word: &str) {
    until(&format!("{word} is found"), || async { !ann.search(word).await.is_empty() }).await;
}

async fn titles(ann: &Caller) -> Vec<String> {
    let list = ann.send(Method::GET, "/v1/todos?pageSize=100", None).await;
    assert_eq!(list.status, 200, "{list:?}");
    let todos = list.body["todos"].as_array().unwrap();
    let mut titles: Vec<_> = todos.iter().map(|todo| todo["title"].as_str().unwrap().to_owned()).collect();
    titles.sort();
    titles
}

#[tokio::test]
async fn a_lost_fleet_goes_back_to_a_moment_and_on_from_there() {
    if let Err(missing) = devstack::backup::installed() {
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let repository = std::env::temp_dir().join(unique("flotilla-backups-"));
    let home = std::env::temp_dir().join(unique("flotilla-drill-"));
    let mut folder = Folder { home, repository: repository.clone(), fleet: None };
    let up = ["up", "--no-demo", "--any-ports", "--gateway-port", "0", "--until-stdin-ends"];
    folder.start(&up).await.unwrap();
    let ann = folder.ann().await;
    let before_all = between();
    let first = ann.create(json!({"title": "first apples"})).await["id"].as_str().unwrap().to_owned();

    // Somebody writes all the while.
    let bob = folder.caller("globex", "bob").await;
    let writes = async {
        loop {
            bob.create(json!({"title": "meanwhile"})).await;
        }
    };
    let args = ["backup", "--repository", repository.to_str().unwrap()];
    let backup = tokio::select! {
        backup = folder.run(&args) => backup.unwrap(),
        () = writes => unreachable!(),
    };
    // Each producer's, dead letters, replays, audit and advisories.
    let streams = fleet::producers().len() + 4;
    assert_eq!(
        (&backup["base"]["full"], backup["streams"]["streams"].as_array().unwrap().len()),
        (&json!(true), streams)
    );
    let restorable: DateTime<Utc> = backup["restorableFrom"].as_str().unwrap().parse().unwrap();
    until("the backup has ended for certain", || async { now() > restorable }).await;
    ann.create(json!({"title": "second pears"})).await;
    let moment = between();
    let renamed = ann.send(Method::PATCH, &format!("/v1/todos/{first}"), Some(json!({"title": "renamed"}))).await;
    assert_eq!(renamed.status, 200, "{renamed:?}");
    let third = ann.create(json!({"title": "third plums"})).await["id"].as_str().unwrap().to_owned();
    // One that is newer than the moment, and must not be taken.
    let newer = folder.run(&["backup"]).await.unwrap();
    assert_eq!(newer["base"]["full"], false);
    let backups = folder.run(&["backups"]).await.unwrap();
    assert_eq!((backups["bases"].as_array().unwrap().len(), backups["streams"].as_array().unwrap().len()), (2, 2));
    let secrets = backups["streams"][0]["secrets"].to_string();
    assert!(secrets.contains("backup-key") && secrets.contains("nats/operator.nk"), "{secrets}");
    for text in ["apples", "acme", "AGE-SECRET-KEY"] {
        assert!(!holds(&repository, text), "{text} is in the repository for everybody to read");
    }
    let running = folder.restore(moment, &[]).await.unwrap_err();
    assert!(running.contains("`flotilla down` first"), "{running}");

    let nats = read_status(&folder.home.join(STATUS_FILE)).unwrap().unit("nats").unwrap().url.clone().unwrap();
    let from = ["--repository", repository.to_str().unwrap()];
    let there = folder.run(&[&["restore", "streams", "--nats", &nats, "--to", "latest"], &from[..]].concat()).await;
    assert!(there.unwrap_err().contains("already in use"), "streams that are there are not written over");

    // Nothing is left but the repository and its key.
    let key = repository.join("key");
    std::fs::copy(folder.home.join("secrets/backup-key"), &key).unwrap();
    folder.down().await;
    folder.run(&["reset", "--yes"]).await.unwrap();
    assert!(!folder.home.exists());
    let no_key = folder.restore(moment, &[]).await.unwrap_err();
    assert!(no_key.contains("say --key FILE"), "{no_key}");
    let key = ["--key", key.to_str().unwrap()];
    let early = folder.restore(before_all, &key).await.unwrap_err();
    assert!(early.contains("no backup is old enough"), "{early}");
    let future = folder.restore(now() + TimeDelta::hours(1), &key).await.unwrap_err();
    assert!(future.contains("has not come yet"), "{future}");

    let other = repository.join("other");
    let made = Command::new("age-keygen").arg("-o").arg(&other).output().await.unwrap();
    assert!(made.status.success());
    let wrong = folder.restore(moment, &["--key", other.to_str().unwrap()]).await.unwrap_err();
    assert!(wrong.contains("is this key theirs?"), "{wrong}");
    // A file that ends too early is not taken for a whole one.
    let label = backup["streams"]["label"].as_str().unwrap();
    let file = repository.join("streams").join(label).join("EVENTS_TODO.age");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let cut = folder.restore(moment, &key).await.unwrap_err();
    assert!(cut.contains("nothing was changed") && cut.contains("restoring the stream EVENTS_TODO"), "{cut}");
    std::fs::write(&file, whole).unwrap();

    // A trial, whose fleet does not come up: the repository is as it was, and has no place for another fleet's backups.
    let before = files(&repository);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let trial = folder.restore(moment, &[&key[..], &["--gateway-port", &port]].concat()).await.unwrap_err();
    assert!(trial.contains("the stores are back") && trial.contains("restore follow"), "{trial}");
    folder.start(&up).await.unwrap();
    assert_eq!(titles(&folder.ann().await).await, ["first apples", "second pears"]);
    let not_its = folder.run(&args).await.unwrap_err();
    assert!(not_its.contains("holds the backups of another fleet"), "{not_its}");
    folder.down().await;
    assert_eq!(files(&repository), before);
    folder.run(&["reset", "--yes"]).await.unwrap();

    let restored = folder.restore(moment, &[&key[..], &["--take-over"]].concat()).await.unwrap();
    println!("{restored}");
    assert_eq!((&restored["findings"], &restored["unchecked"]), (&json!(0), &json!([])));
    assert_eq!((&restored["lost"], &restored["stores"]["aside"]), (&json!([]), &json!([])), "nothing was there");
    let ann = folder.ann().await;
    assert_eq!(titles(&ann).await, ["first apples", "second pears"]);
    assert_eq!(ann.search("pears").await, ["second pears"], "the newer event came from the outbox");
    for gone in ["renamed", "plums"] {
        assert_eq!(ann.search(gone).await, Vec::<String>::new());
    }
    assert_eq!(ann.send(Method::GET, &format!("/v1/todos/{first}"), None).await.body["version"], 1);
    assert_eq!(ann.send(Method::GET, &format!("/v1/todos/{third}"), None).await.status, 404);

    // It goes on, and back again along what came since. This time the streams are there, and know of what is undone.
    ann.create(json!({"title": "fourth quinces"})).await;
    until_published(&ann, "quinces").await;
    let again = between();
    ann.create(json!({"title": "fifth medlars"})).await;
    until_published(&ann, "medlars").await;
    folder.down().await;
    let undone = folder.restore(moment + TimeDelta::milliseconds(500), &[]).await.unwrap_err();
    assert!(undone.contains("was undone by the restore of"), "{undone}");
    // The log ends before this one: what was there is there again.
    let beyond = folder.restore(now(), &[]).await.unwrap_err();
    assert!(beyond.contains("nothing was changed") && beyond.contains("say an earlier moment"), "{beyond}");
    let restored = folder.restore(again, &[]).await.unwrap();
    println!("{restored}");
    assert_eq!((&restored["findings"], &restored["unchecked"]), (&json!(0), &json!([])));
    assert_eq!(restored["stores"]["aside"].as_array().unwrap().len(), 1, "{restored}");
    let lost = std::fs::read_to_string(restored["lost"][0].as_str().unwrap()).unwrap();
    assert!(lost.contains("fifth medlars") && !lost.contains("fourth quinces"), "{lost}");
    let ann = folder.ann().await;
    assert_eq!(titles(&ann).await, ["first apples", "fourth quinces", "second pears"]);
    assert_eq!(ann.search("medlars").await, Vec::<String>::new());
    let status = folder.run(&["status"]).await.unwrap();
    assert_eq!(status["degraded"], json!([]), "{status}");

    // A disk that is not mounted is no new repository, nor is a folder that was misspelt.
    let elsewhere = repository.with_extension("elsewhere");
    std::fs::rename(&repository, &elsewhere).unwrap();
    std::fs::create_dir(&repository).unwrap();
    let unmounted = folder.run(&["backup"]).await.unwrap_err();
    assert!(unmounted.contains("is not the repository that it was"), "{unmounted}");
    std::fs::remove_dir(&repository).unwrap();
    let gone = folder.run(&["backup"]).await.unwrap_err();
    assert!(gone.contains("cannot be used"), "{gone}");
    std::fs::rename(&elsewhere, &repository).unwrap();
    let misspelt = folder.run(&["backup", "--repository", elsewhere.to_str().unwrap()]).await.unwrap_err();
    assert!(misspelt.contains("say --anew"), "{misspelt}");

    // A log that cannot be archived is said to be so, and is archived once it can.
    let archive = repository.join("postgres");
    std::fs::rename(&archive, repository.join("gone")).unwrap();
    switch(&folder).await;
    folder.until_degraded(true).await;
    std::fs::rename(repository.join("gone"), &archive).unwrap();
    switch(&folder).await;
    folder.until_degraded(false).await;

    // To the end of the log, after a supervisor that was killed has left all that it had written.
    ann.create(json!({"title": "sixth sloes"})).await;
    folder.run(&["backup", "--full"]).await.unwrap();
    let status = read_status(&folder.home.join(STATUS_FILE)).unwrap();
    for _ in 0..3 {
        switch(&folder).await;
    }
    signal(status.supervisor, Signal::SIGKILL).unwrap();
    let ends = status.units.iter().filter_map(|unit| unit.pid);
    until("nothing runs", || async { ends.clone().all(|pid| !is_alive(pid)) }).await;
    // A segment that is missing is no end.
    let mut log = files(&repository.join("postgres/archive"));
    log.retain(|(path, _)| path.to_str().unwrap().ends_with(".zst") && path.to_str().unwrap().contains("/00000003"));
    let (segment, _) = &log[log.len() - 2];
    let kept = segment.with_extension("kept");
    std::fs::rename(segment, &kept).unwrap();
    let gap = folder.restore_to("latest", &[]).await.unwrap_err();
    assert!(gap.contains("has a gap") && gap.contains("nothing was changed"), "{gap}");
    std::fs::rename(&kept, segment).unwrap();
    let restored = folder.restore_to("latest", &["--streams", "backup"]).await.unwrap();
    println!("{restored}");
    assert_eq!(
        (&restored["findings"], restored["stores"]["aside"].as_array().unwrap().len()),
        (&json!(0), 2),
        "{restored}"
    );
    let ann = folder.ann().await;
    assert_eq!(titles(&ann).await, ["first apples", "fourth quinces", "second pears", "sixth sloes"]);
    assert_eq!(ann.search("sloes").await, ["sixth sloes"]);

    // What is older than the backups to keep goes, with its streams.
    folder.run(&["backup", "--full", "--keep", "1"]).await.unwrap();
    let kept = folder.run(&["backups"]).await.unwrap();
    let full: Vec<_> = kept["bases"].as_array().unwrap().iter().map(|base| base["full"].clone()).collect();
    assert_eq!((full.as_slice(), kept["streams"].as_array().unwrap().len()), (&[json!(true)][..], 1), "{kept}");
    folder.down().await;
}
