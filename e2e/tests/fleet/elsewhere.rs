//! The operators' commands from another folder, by a profile that has no more than the logins of NATS' administration.

use std::fs;
use std::path::PathBuf;

use e2e::Fleet;
use serde_json::{Value, json};

use crate::with_fleet;

/// An operator's folder, with a profile of the fleet.
pub struct Desk(PathBuf);

impl Desk {
    pub async fn of(fleet: &Fleet) -> Self {
        let desk = Self(std::env::temp_dir().join(testkit::unique("flotilla-desk-")));
        let logins = desk.0.join("keys/secrets/nats");
        fs::create_dir_all(&logins).unwrap();
        for file in fs::read_dir(fleet.home.join("secrets/nats")).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if name.ends_with("-admin.creds") {
                fs::copy(&file, logins.join(name)).unwrap();
            }
        }
        let mut args = vec!["profile".to_owned(), "add".to_owned(), "prod".to_owned()];
        let mut say = |flag: &str, value: String| args.extend([format!("--{flag}"), value]);
        say("gateway", format!("http://{}", fleet.unit("gateway").address));
        say("nats", fleet.unit("nats").url.unwrap());
        say("jwks", format!("{}/jwks.json", fleet.unit("issuer").url.unwrap()));
        say("keys", "keys".to_owned());
        say(
            "token-command",
            format!("{} --home {} token --operator --user olga", e2e::flotilla().display(), fleet.home.display()),
        );
        for service in fleet::SERVICES {
            say("ops", format!("{}={}", service.name, fleet.unit(service.name).ops.unwrap()));
        }
        // A second replica: here the same process, by another name. And one that is gone.
        let port = fleet.unit("todo").ops.unwrap().rsplit_once(':').unwrap().1.to_owned();
        say("ops", format!("todo=localhost:{port}"));
        say("ops", "operations=127.0.0.1:1".to_owned());
        let added = desk.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        desk
    }

    async fn run(&self, args: &[&str]) -> std::process::Output {
        let mut command = tokio::process::Command::new(e2e::flotilla());
        command.args(args).current_dir(&self.0).env("XDG_CONFIG_HOME", &self.0).kill_on_drop(true);
        command.env_remove("FLOTILLA_HOME").env_remove("FLOTILLA_PROFILE").env_remove("FLOTILLA_OPERATOR_TOKEN");
        command.output().await.unwrap()
    }

    /// Has the keys of the development issuer and provider, too.
    pub fn takes_keys(&self, fleet: &Fleet) {
        for file in fs::read_dir(fleet.home.join("secrets")).unwrap().map(|entry| entry.unwrap().path()) {
            if file.is_file() {
                fs::copy(&file, self.0.join("keys/secrets").join(file.file_name().unwrap())).unwrap();
            }
        }
    }

    /// What the command prints of the fleet that is elsewhere.
    pub async fn asks(&self, args: &[&str]) -> String {
        let output = self.run(&[&["--profile", "prod", "--json"], args].concat()).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.asks(args).await).unwrap()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn an_operator_who_is_elsewhere_asks_and_acts() {
    with_fleet(|fleet, _| async {
        let eve = fleet.caller("far-away", "eve").await;
        eve.create(json!({"title": "Scrape the keel"})).await;
        testkit::until("it is found", || async { eve.search("keel").await.len() == 1 }).await;
        let desk = Desk::of(fleet).await;

        let status = desk.json(&["status"]).await;
        assert_eq!(status["units"], json!([]), "what this machine supervises");
        assert_eq!(status["ops"]["todo"].as_array().unwrap().len(), 2);
        for service in fleet::SERVICES {
            assert!(status["releases"][service.name].is_string(), "{status}");
        }
        let degraded = status["degraded"].as_array().unwrap();
        let gone =
            |line: &&Value| line.as_str().unwrap().starts_with("operations at 127.0.0.1:1 runs and is not ready");
        assert_eq!(degraded.iter().filter(gone).count(), 1, "{status}");
        assert!(status["outboxes"]["todo"]["overview"].is_object(), "{status}");
        assert!(status["deadLetters"]["stats"].is_object(), "{status}");

        // Twice what one replica counts: the same one was asked twice.
        let here = fleet.json(&["lag"]).await;
        let lag = desk.json(&["lag"]).await;
        let stored = |lag: &Value| {
            let stages = lag["stages"].as_array().unwrap();
            stages.iter().find(|stage| stage["of"] == "todo").unwrap()["count"].as_f64().unwrap()
        };
        assert!(stored(&lag) >= 2.0 * stored(&here), "{here} {lag}");
        assert!(lag["outboxBacklogs"]["todo"].is_number(), "{lag}");

        let consumers = desk.asks(&["consumers"]).await;
        assert!(consumers.contains("todo-recurrence"), "{consumers}");
        let one = ["events", "tail", "--tenant", "far-away", "--from-start", "--count", "1"];
        assert!(desk.asks(&one).await.contains("Scrape the keel"), "the first event of the tenant");
        desk.json(&["outbox", "journal"]).await;
        desk.json(&["dlq", "stats"]).await;
        desk.json(&["dlq", "groups"]).await;
        let because = ["--reason", "an auditor asks"];
        let rows = desk.asks(&[&["data", "export", "--tenant", "far-away"][..], &because].concat()).await;
        assert!(rows.contains("Scrape the keel"), "{rows}");
        let resume = ["consumers", "resume", "todo-recurrence", "--yes", "--reason", "it may be paused"];
        assert_eq!(desk.json(&resume).await["resumed"], "todo-recurrence");
        let audit = desk.asks(&["dlq", "audit"]).await;
        for reason in ["an auditor asks", "it may be paused"] {
            assert!(audit.contains(reason) && audit.contains("olga"), "the token's subject acts: {audit}");
        }
        let report = desk.json(&["verify"]).await;
        assert_eq!(report["lost"]["count"], 0, "{report}");
        let bundle = desk.0.join("bundle.tar.gz");
        desk.asks(&["bundle", "--to", bundle.to_str().unwrap()]).await;
        let listed = std::process::Command::new("tar").arg("-tzf").arg(&bundle).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.contains("/metrics/todo.txt") && !listed.contains("/logs/"), "{listed}");
    });
}
