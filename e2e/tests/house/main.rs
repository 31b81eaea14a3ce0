//! The rules of the house (ARCHITECTURE.md, "Who may import what"): which crate may depend on which, and which files
//! may use what.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod imports;

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
    // The proxy before OpenSearch has the listener of services, and their TLS.
    ("devstack", &["authz", "consumer", "contracts", "fleet", "outbox", "service"]),
    ("authz", &["contracts"]),
    ("service", &["authz", "consumer", "contracts", "outbox", "proto"]),
    ("testkit", &["authz", "contracts", "devstack", "fleet", "outbox"]),
    // It calls the services, and links none; a scheduled check has an operations port as they have.
    ("cli", &["authz", "consumer", "contracts", "devstack", "fleet", "outbox", "proto", "service"]),
    ("bench", &["authz", "devstack", "outbox", "proto", "service"]),
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
        ("jsonwebtoken", with(|_| false, &["authz"])),
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

/// Code lines that hold one of these words, without comments and tests.
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

/// The statements of a migration, in lower case and with single spaces, each with whether a comment in it says
/// `-- the release before goes on: why`.
fn statements(text: &str) -> Vec<(String, bool)> {
    let (mut all, mut statement, mut excused, mut quoted) = (Vec::new(), String::new(), false, false);
    for line in text.lines() {
        let (code, comment) = line.split_once("--").unwrap_or((line, ""));
        excused |= comment.trim_start().starts_with("the release before goes on: ");
        for (number, part) in code.split(';').enumerate() {
            if number > 0 {
                if quoted {
                    statement.push(';');
                } else {
                    all.push((std::mem::take(&mut statement), std::mem::take(&mut excused)));
                }
            }
            statement.push_str(part);
            quoted ^= part.matches('$').count() / 2 % 2 == 1;
        }
        statement.push(' ');
    }
    all.push((statement, excused));
    let plain = |text: String| text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    all.into_iter().map(|(text, excused)| (plain(text), excused)).filter(|(text, _)| !text.is_empty()).collect()
}

/// Whether a statement, by its form alone, takes nothing away from a release that runs, and refuses none of its writes. `made` are the
/// tables and functions that the same migrations make.
fn only_adds(statement: &str, made: &[String]) -> bool {
    let of_a_new_one = |rest: &str| made.iter().any(|name| rest.split([' ', '(']).next() == Some(name));
    let begins = |words: &[&str]| words.iter().any(|words| statement.starts_with(words));
    if begins(&[
        "create table ",
        // What a build has left that was cut off is dropped by this name.
        "create index concurrently if not exists ",
        "create sequence ",
        "create function ",
        "create view ",
        "grant ",
        "comment on ",
    ]) {
        return true;
    }
    if let Some((_, table)) = statement
        .split_once(" on ")
        .filter(|_| begins(&["create index ", "create unique index ", "create policy ", "create trigger "]))
    {
        return of_a_new_one(table);
    }
    if let Some(rest) = statement.strip_prefix("revoke all on function ") {
        return of_a_new_one(rest) && rest.ends_with(" from public");
    }
    if let Some(rest) = statement.strip_prefix("insert into ") {
        return of_a_new_one(rest);
    }
    let Some((table, what)) = statement.strip_prefix("alter table ").and_then(|rest| rest.split_once(' ')) else {
        return false;
    };
    of_a_new_one(table)
        || what.split(", add ").enumerate().all(|(number, clause)| {
            let clause = if number == 0 { clause.strip_prefix("add ").unwrap_or_default() } else { clause };
            let wanted = clause.contains(" not null") && !clause.contains(" default ");
            clause.starts_with("column ")
                && !wanted
                && ![" unique", " primary key", ", drop", ", alter"].iter().any(|words| clause.contains(words))
        })
}

#[test]
fn the_rule_of_migrations_knows_what_takes_away() {
    let made = ["boat".to_owned()];
    for adds in [
        "create table ship (id uuid)",
        "create index concurrently if not exists ship_idx on ship (id)",
        "create index on boat (id)",
        "create unique index on boat (id)",
        "create policy p on boat using (true)",
        "alter table boat enable row level security",
        "alter table ship add column length int, add column name text not null default 'x'",
        "insert into boat values (1)",
        "revoke all on function boat(integer) from public",
    ] {
        assert!(only_adds(adds, &made), "{adds}");
    }
    for takes in [
        "alter table ship drop notes",
        "alter table ship alter notes set not null",
        "alter table ship add column x text not null",
        "alter table ship add column x text, drop column y",
        "alter table ship add check (length > 0)",
        "alter table ship disable row level security",
        "alter table ship set schema other",
        "alter table ship rename to vessel",
        "create index on ship (name)",
        "create index concurrently on ship (name)",
        "create unique index on ship (name)",
        "create policy p on ship using (true)",
        "create or replace function f() returns int language sql as $$ select 1 $$",
        "revoke select on ship from app",
        "drop index ship_idx",
        "delete from ship",
        "do $$ begin execute 'drop table ship'; end $$",
    ] {
        assert!(!only_adds(takes, &made), "{takes}");
    }
    let text = "-- the release before goes on: nobody reads it\ndrop  table\n a; drop table b; -- was b\ndo $f$ begin; end $f$;";
    let expected = [("drop table a", true), ("drop table b", false), ("do $f$ begin; end $f$", false)];
    assert_eq!(statements(text), expected.map(|(text, excused)| (text.to_owned(), excused)));
}

/// `scripts/check.sh` keeps released migrations unchanged; they were checked when they were new.
#[test]
fn a_migration_leaves_the_release_before_it_running() {
    let released = std::fs::read_to_string(workspace().join("infra/released-migrations.sha384")).unwrap();
    let mut folders: Vec<_> = services().map(|name| format!("services/{name}/migrations")).collect();
    folders.extend(["outbox", "consumer", "service"].map(|name| format!("crates/{name}/schema")));
    for folder in folders {
        let Ok(files) = std::fs::read_dir(workspace().join(&folder)) else { continue };
        let names = files.map(|file| format!("{folder}/{}", file.unwrap().file_name().into_string().unwrap()));
        let new = names.filter(|name| !released.lines().any(|line| line.ends_with(&format!("  {name}"))));
        let new: Vec<_> =
            new.map(|name| (statements(&std::fs::read_to_string(workspace().join(&name)).unwrap()), name)).collect();
        let of = |statement: &str, words| {
            statement.strip_prefix(words).and_then(|rest: &str| rest.split([' ', '(']).next()).map(str::to_owned)
        };
        let all = || new.iter().flat_map(|(statements, _)| statements);
        let made: Vec<_> =
            all().filter_map(|(text, _)| of(text, "create table ").or_else(|| of(text, "create function "))).collect();
        for (statements, name) in &new {
            for (statement, excused) in statements {
                assert!(
                    *excused || only_adds(statement, &made),
                    "{name}: {statement}\nThe release before may not bear it: see CONTRIBUTING.md"
                );
            }
        }
    }
}

#[test]
fn the_domain_is_pure() {
    let impure = ["async ", "sqlx", "tokio", "Utc::now", "clock::", "Uuid::now", "reqwest", "tonic", "service::"];
    // Files of a role that reads or writes; all others of a service are its domain. The gateway has none.
    let roles = ["events", "grpc", "lib", "lists", "main", "outgoing", "schedule", "schema"];
    let others = [
        "identity/tokens",
        "operations/publish",
        "operations/replay",
        "operations/unsettled",
        "search-projector/freshness",
        "search-projector/upkeep",
    ];
    let mut seen = 0;
    for service in services().filter(|service| *service != "gateway") {
        for path in sources(&workspace().join("services").join(service).join("src")) {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let named = format!("{service}/{stem}");
            if roles.contains(&stem)
                || ["commands", "operators", "store", "wire"].iter().any(|role| stem.starts_with(role))
                || others.contains(&named.as_str())
            {
                continue;
            }
            let lines = lines_with(&path, &impure);
            assert!(lines.is_empty(), "{named}: {lines:?}");
            seen += 1;
        }
    }
    assert!(seen >= 7, "{seen}");
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

#[test]
fn programs_say_what_each_argument_is_for() {
    for service in fleet::SERVICES {
        let mut subcommands = vec!["serve", "healthcheck"];
        subcommands.extend(service.database.map(|_| "migrate"));
        for subcommand in subcommands {
            let output =
                Command::new(e2e::flotilla().with_file_name(service.name)).args([subcommand, "--help"]).output();
            let help = String::from_utf8(output.unwrap().stdout).unwrap();
            let mut lines = help.lines().map(str::trim).peekable();
            let mut seen = 0;
            while let Some(line) = lines.next() {
                if line.starts_with("--") {
                    // Beside it where all are short, and below it otherwise.
                    let below = lines.peek().copied().unwrap_or_default();
                    let said = line.split_once("  ").map_or(below, |(_, beside)| beside.trim());
                    assert!(
                        said.starts_with(|first: char| first.is_ascii_uppercase()),
                        "{subcommand} {line}: {said:?}"
                    );
                    seen += 1;
                }
            }
            assert!(seen > 1, "{} {subcommand} --help: {help}", service.name);
        }
    }
}

#[test]
fn the_command_completes_itself_and_writes_its_manual() {
    let script = Command::new(e2e::flotilla()).args(["completion", "bash"]).output().unwrap();
    assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
    let folder = std::env::temp_dir().join(testkit::unique("flotilla-manual-"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("flotilla.bash"), &script.stdout).unwrap();
    // A shell takes it, and offers what begins so.
    let asks = "source ./flotilla.bash; COMP_WORDS=(flotilla ver); COMP_CWORD=1; _flotilla flotilla ver flotilla; echo ${COMPREPLY[@]}";
    let offered = Command::new("bash").args(["-c", asks]).current_dir(&folder).output().unwrap();
    assert!(
        String::from_utf8_lossy(&offered.stdout).contains("verify"),
        "{}",
        String::from_utf8_lossy(&offered.stderr)
    );
    let written = Command::new(e2e::flotilla()).args(["manual", "pages"]).current_dir(&folder).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    for page in ["flotilla.1", "flotilla-verify.1", "flotilla-events-tail.1"] {
        assert!(folder.join("pages").join(page).exists(), "{page}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
