//! What a supporter is sent: enough to help, and no secret.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::with_fleet;

/// Every file below a folder, by its path in there.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in next.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                all.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[test]
fn a_bundle_shows_the_fleet_and_no_secret() {
    with_fleet(|fleet, _| async {
        fleet.caller("bundled", "ann").await.create(json!({"title": "A title that nobody else reads"})).await;
        let token = fleet.run(&["token", "--operator", "--user", "olga"]).await;
        let token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
        // What a careless line could hold: each secret of the folder, as its file has it, and a token.
        let secrets = files(&fleet.home.join("secrets"));
        assert!(secrets.len() > 10, "{:?}", secrets.keys());
        let lines: Vec<_> = secrets.values().map(|secret| String::from_utf8_lossy(secret).into_owned()).collect();
        let careless = fleet.home.join("logs/careless.log");
        std::fs::write(&careless, format!("before {token}\n{}\nafter\n", lines.join("\n"))).unwrap();

        let to = fleet.home.join("bundle.tar.gz");
        let bundle = ["bundle", "--verify", "--to", to.to_str().unwrap()];
        let mut command = fleet.command(&bundle);
        let output = command.env("FLOTILLA_OPERATOR_TOKEN", &token).output().await.unwrap();
        std::fs::remove_file(&careless).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let again = fleet.run(&bundle).await;
        assert!(String::from_utf8_lossy(&again.stderr).contains("exists"), "nothing is overwritten");

        let folder = fleet.home.join("unpacked");
        std::fs::create_dir(&folder).unwrap();
        let tar = std::process::Command::new("tar").arg("-xzf").arg(&to).arg("-C").arg(&folder).status().unwrap();
        assert!(tar.success());
        let root = folder.read_dir().unwrap().next().unwrap().unwrap().path();
        let bundled = files(&root);
        let text = |name: &str| {
            String::from_utf8_lossy(bundled.get(name).unwrap_or_else(|| panic!("{name}: {:?}", bundled.keys())))
                .into_owned()
        };
        let status: serde_json::Value = serde_json::from_str(&text("status.json")).unwrap();
        assert!(status["units"].as_array().unwrap().len() > 5, "{status}");
        let state: serde_json::Value = serde_json::from_str(&text("state.json")).unwrap();
        assert_eq!(state["units"].as_array().unwrap().len(), status["units"].as_array().unwrap().len());
        for service in fleet::SERVICES {
            assert!(text(&format!("metrics/{}.txt", service.name)).contains("build_info"), "{}", service.name);
            assert!(text(&format!("logs/{}.log", service.name)).contains(service.name), "{}", service.name);
        }
        for name in [
            "verify.json",
            "lag.json",
            "consumers.json",
            "dead-letter-groups.json",
            "outbox-journal-todo.json",
            "machine/disks.txt",
        ] {
            assert!(!text(name).is_empty(), "{name}");
        }
        let about = text("about.txt");
        let (about, missing) = about.split_once("not here:\n").unwrap();
        assert!(about.contains("FLOTILLA_OPERATOR_TOKEN"), "{about}");
        // A program of the machine may be missing.
        assert!(missing.lines().all(|line| line == "nothing" || line.starts_with("machine/")), "{missing}");

        let careless = text("logs/careless.log");
        assert!(careless.starts_with("before [secret]\n") && careless.ends_with("after\n"), "{careless}");
        // Of no secret is a piece left that one could log in with; names and addresses are none.
        let pieces =
            lines.iter().flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || "_-+=.".contains(c))));
        let pieces = pieces.filter(|piece| piece.len() >= 16 && piece.bytes().any(|byte| byte.is_ascii_digit()));
        let pieces: Vec<_> = pieces.chain([token.as_str(), "A title that nobody else reads"]).collect();
        for (name, content) in &bundled {
            let content = String::from_utf8_lossy(content);
            let left = pieces.iter().find(|piece| content.contains(**piece));
            assert_eq!(left, None, "{name} holds it");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::remove_file(&to).unwrap();
    });
}
