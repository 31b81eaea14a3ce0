//! The rules of the house (ARCHITECTURE.md, "Who may import what"): which crate may depend on which, and which files
//! may use what.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::workspace;
use serde_json::Value;

/// Our crates, and which of ours each may depend on. Development dependencies are free, but never a service's.
const EDGES: [(&str, &[&str]); 13] = [
    ("contracts", &[]),
    ("proto", &[]),
    ("outbox", &[]),
    ("consumer", &[]),
    ("fleet", &["consumer", "contracts", "outbox"]),
    ("devstack", &["consumer", "contracts", "fleet", "outbox"]),
    ("authz", &["contracts"]),
    ("service", &["authz", "consumer", "contracts", "outbox"]),
    ("testkit", &["authz", "devstack", "fleet"]),
    // Letters and indices are worked by the command and by their services, by the same functions.
    ("cli", &["authz", "consumer", "contracts", "devstack", "fleet", "operations", "outbox", "search-projector"]),
    ("bench", &["devstack", "outbox", "proto"]),
    ("consume-events", &[]),
    ("e2e", &["devstack", "testkit"]),
];
/// The same for every service of the fleet's table.
const OF_SERVICES: &[&str] = &["authz", "consumer", "contracts", "fleet", "outbox", "proto", "service"];

fn services() -> impl Iterator<Item = &'static str> {
    fleet::SERVICES.iter().map(|service| service.name)
}

/// Every member's normal dependencies, and its development ones.
fn members() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let dependencies = |package: &Value, dev: bool| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| (dependency["kind"] == "dev") == dev)
            .map(|dependency| text(&dependency["name"]))
            .collect()
    };
    packages
        .iter()
        .map(|package| (text(&package["name"]), (dependencies(package, false), dependencies(package, true))))
        .collect()
}

#[test]
fn crates_depend_only_on_what_they_may() {
    let members = members();
    let edges: BTreeMap<_, _> = EDGES.into_iter().chain(services().map(|name| (name, OF_SERVICES))).collect();
    let named: BTreeSet<_> = edges.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(
        members.keys().cloned().collect::<BTreeSet<_>>(),
        named,
        "every crate has its line in EDGES, every service its row in the table"
    );
    for (name, allowed) in edges {
        let (normal, dev) = &members[name];
        let ours: Vec<_> = normal.iter().filter(|dependency| named.contains(*dependency)).collect();
        assert!(ours.iter().all(|dependency| allowed.contains(&dependency.as_str())), "{name} depends on {ours:?}");
        for service in services() {
            let may = allowed.contains(&service);
            assert!(may || !(dev.contains(service) || normal.contains(service)), "{name} depends on {service}");
        }
    }
}

#[test]
fn heavy_dependencies_stay_where_they_belong() {
    let members = members();
    let with = |has: fn(&fleet::Service) -> bool, others: &[&'static str]| -> Vec<&'static str> {
        fleet::SERVICES
            .iter()
            .filter(|service| has(service))
            .map(|service| service.name)
            .chain(others.iter().copied())
            .collect()
    };
    for (dependency, allowed) in [
        (
            "async-nats",
            with(
                |_| false,
                &["bench", "cli", "consume-events", "consumer", "devstack", "e2e", "outbox", "service", "testkit"],
            ),
        ),
        (
            "sqlx",
            with(
                |service| service.database.is_some(),
                &["bench", "cli", "consumer", "devstack", "outbox", "service", "testkit"],
            ),
        ),
        ("opensearch", with(|service| service.search_engine, &[])),
        ("backoff", with(|_| false, &["cli", "consumer", "outbox", "service"])),
        ("jsonwebtoken", with(|_| false, &["authz", "devstack"])),
    ] {
        for (name, (normal, _)) in &members {
            assert!(!normal.contains(dependency) || allowed.contains(&name.as_str()), "{name} depends on {dependency}");
        }
    }
}

/// The sources below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found
}

/// Code lines that hold one of these words, comments and tests left out.
fn lines_with(path: &Path, words: &[&str]) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
    let uses = |line: &&str| !line.trim_start().starts_with("//") && words.iter().any(|word| line.contains(word));
    code.lines().filter(uses).map(ToOwned::to_owned).collect()
}

#[test]
fn sql_is_in_the_store_and_nowhere_else() {
    for service in services() {
        for path in sources(&workspace().join("services").join(service).join("src")) {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            if stem.starts_with("store") {
                continue;
            }
            let mut lines = lines_with(&path, &["sqlx::", "opensearch::"]);
            // The migrations are named where the service is put together, an address is checked with the
            // configuration, and a command's error knows the database's.
            lines.retain(|line| {
                !line.contains("migrate") && !line.contains("Url::parse") && !line.contains("sqlx::Error")
            });
            assert!(lines.is_empty(), "{}: {lines:?}", path.display());
        }
    }
}

#[test]
fn a_migration_leaves_the_release_before_it_running() {
    let takes_away = [
        "drop table",
        "drop column",
        "drop function",
        "drop view",
        "drop schema",
        "rename ",
        "alter column",
        "truncate",
    ];
    let mut folders: Vec<_> =
        services().map(|name| workspace().join("services").join(name).join("migrations")).collect();
    folders.extend(["outbox", "consumer", "service"].map(|name| workspace().join("crates").join(name).join("schema")));
    let mut seen = 0;
    for file in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
        seen += 1;
        let mut excused = false;
        for line in text.lines().map(str::trim_start) {
            if line.starts_with("--") {
                excused |= line.starts_with("-- no release uses it: ");
                continue;
            }
            // What a function does when it runs is another matter.
            let done_now = !["execute ", "create "].iter().any(|words| line.starts_with(words));
            let wrong = takes_away.iter().find(|words| done_now && line.contains(*words)).filter(|_| !excused);
            assert!(wrong.is_none(), "{}: {line}\nThe release before may use it: see CONTRIBUTING.md", path.display());
            excused &= !line.ends_with(';');
        }
    }
    assert!(seen > 30, "{seen}");
}

#[test]
fn the_domain_is_pure() {
    let impure = ["async ", "sqlx", "tokio", "Utc::now", "clock::", "Uuid::now", "reqwest", "tonic", "service::"];
    for domain in [
        "todo/src/todo.rs",
        "todo/src/texts.rs",
        "todo/src/recurrence.rs",
        "todo/src/permissions.rs",
        "search-projector/src/permissions.rs",
    ] {
        let lines = lines_with(&workspace().join("services").join(domain), &impure);
        assert!(lines.is_empty(), "{domain}: {lines:?}");
    }
}

#[test]
fn main_is_short_and_files_stay_small() {
    for folder in ["services", "crates", "cli/src"] {
        for path in sources(&workspace().join(folder)) {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            let most = match path.components().any(|part| part.as_os_str() == "services") {
                true if path.ends_with("src/main.rs") => 12,
                true if path.ends_with("src/lib.rs") => 100,
                _ => 600,
            };
            assert!(lines <= most, "{} has {lines} lines, at most {most} are good to read", path.display());
        }
    }
}
