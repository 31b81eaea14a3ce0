//! `flotilla new service`: writes a service from the templates of the repository, and its row in the fleet's table.
//!
//! The templates are a service `harbour` with the aggregates `vessel` and `logbook`. The new names replace these in texts and
//! in the names of files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};

/// The path of the templates below the root of the repository.
const TEMPLATES: &str = "templates/service";
/// The fleet's table of services.
const TABLE: &str = "crates/fleet/src/services.rs";
/// The registries of events.
const EVENTS: &str = "crates/contracts/src/events/mod.rs";
/// The code owners.
const OWNERS: &str = ".github/CODEOWNERS";

/// Words that no aggregate may be called, for a table, a module and a struct have its name: reserved ones of PostgreSQL and of Rust, and
/// what the templates call otherwise.
const TAKEN: &str = "all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create current_user \
    default deferrable desc distinct do else end except false fetch for foreign from grant group having in initially intersect into lateral \
    leading limit localtime not null offset on only or order placing primary references returning select session_user some symmetric table \
    then to trailing true union unique user using variadic when where window with \
    abstract async await become box break const continue crate dyn enum extern final fn gen if impl let loop macro match mod move mut \
    override priv pub ref return self static struct super trait try type typeof unsafe unsized use virtual while yield \
    about actor aggregate app authz bool bytes call char client clock code commands config connection consumer contracts copy core data \
    database default drop error event events failure fleet grpc id ids idempotency if_match inbox lib main metadata name notes operators option \
    outbox outgoing page pages patch permission permissions postgres program proto request response result row schema service sized sqlx state \
    status std store str string tenant test text texts these tokio tonic tx uuid vec wire \
    inbox_dead inbox_lease outbox_journal outbox_parked outbox_passed outbox_relay template0 template1";

#[derive(Debug, Clone, Subcommand)]
pub enum NewCommand {
    /// A service: two aggregates, API, events, a handler, database, export and erase, tests and runbook.
    Service(ServiceArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// Its name: 2 to 40 letters a to z and digits. Program, database, roles, stream, login and package are called so.
    name: String,
    /// Who answers for it, as a team of the repository's host is called; the service's name unless it is said.
    #[arg(long)]
    owner: Option<String>,
    /// Its two aggregates, with a comma between, in the singular and snake case: `invoice,price_policy`. A created one of the first kind
    /// brings forth one of the second, which is deleted with it.
    #[arg(long, required = true, value_delimiter = ',')]
    aggregates: Vec<String>,
}

pub fn run(command: &NewCommand) -> Result<(), anyhow::Error> {
    let NewCommand::Service(args) = command;
    let root = root()?;
    let names = Names::of(args, &Known::read(&root)?)?;
    let files = files(&root, &names)?;
    let edits = edits(&root, &names)?;
    for (path, text) in files.iter().chain(&edits) {
        let path = root.join(path);
        let folder = path.parent().context("a file has a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let formatted = ["fmt", "--package", &names.service, "--package", "contracts", "--package", "fleet"];
    tool(&root, "cargo", &formatted).and_then(|()| tool(&root, "make", &["schemas"])).with_context(|| {
        let edited: Vec<_> = edits.iter().map(|(path, _)| path.display().to_string()).collect();
        let written: Vec<_> = files.iter().map(|(path, _)| path.display().to_string()).collect();
        format!(
            "the files are written, and what follows has failed. To take it all back: git checkout -- {} && rm {} schemas/*/{2}.* schemas/{2}.*",
            edited.join(" "),
            written.join(" "),
            names.service
        )
    })?;
    let lines: usize = files.iter().map(|(_, text)| text.lines().count()).sum();
    println!("Wrote {lines} lines in {} files, and changed {}:", files.len(), edits.len());
    for (path, _) in &edits {
        println!("  {}", path.display());
    }
    println!(
        "(make schemas and cargo changed schemas/, services/gateway/openapi.json and Cargo.lock.) Now: make build, bin/flotilla k8s render, bin/flotilla compose render, cargo test --package {}.",
        names.service
    );
    println!("Then see docs/adding-a-service.md.");
    Ok(())
}

/// The repository that this is run in.
fn root() -> Result<PathBuf, anyhow::Error> {
    let here = std::env::current_dir()?;
    let root = here.ancestors().find(|folder| folder.join(TEMPLATES).is_dir() && folder.join(TABLE).is_file());
    Ok(root.context("run it within a clone of the repository")?.to_owned())
}

fn tool(root: &Path, program: &str, args: &[&str]) -> Result<(), anyhow::Error> {
    let status = Command::new(program).args(args).current_dir(root).status();
    let status = status.with_context(|| format!("running {program}"))?;
    ensure!(status.success(), "`{program} {}` has failed", args.join(" "));
    Ok(())
}

/// The contents of the repository on disk: the running program may be older.
struct Known {
    /// Names of packages, ours and others', and of the folders of contracts.
    packages: BTreeSet<String>,
    /// The contracts, which hold the HTTP paths.
    paths: String,
    /// The highest port in the table, of those that start with 17.
    highest_port: u16,
}

impl Known {
    fn read(root: &Path) -> Result<Self, anyhow::Error> {
        let text = |file: &Path| std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()));
        let lock = text(&root.join("Cargo.lock"))?;
        let names = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        let mut packages: BTreeSet<String> = names.map(|name| name.replace('-', "_")).collect();
        let mut paths = String::new();
        for service in std::fs::read_dir(root.join("proto/flotilla")).context("reading proto/flotilla")? {
            let service = service?;
            packages.insert(service.file_name().to_string_lossy().into_owned());
            for version in std::fs::read_dir(service.path())? {
                for file in std::fs::read_dir(version?.path())? {
                    paths.push_str(&text(&file?.path())?);
                }
            }
        }
        let table = text(&root.join(TABLE))?;
        let numbers = table.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u16>().ok());
        let highest_port = numbers.filter(|port| (17_000..18_000).contains(port)).max().unwrap_or(17_000);
        Ok(Self { packages, paths, highest_port })
    }
}

/// The replacements of the templates' names.
#[derive(Debug)]
struct Names {
    service: String,
    owner: String,
    aggregates: [String; 2],
    port: u16,
}

impl Names {
    fn of(args: &ServiceArgs, known: &Known) -> Result<Self, anyhow::Error> {
        let ServiceArgs { name, owner, aggregates } = args;
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        ensure!(
            plain && begins && (2..=40).contains(&name.len()),
            "{name:?}: a service has 2 to 40 letters a to z and digits, a letter first"
        );
        let taken = |word: &str| TAKEN.split_whitespace().any(|taken| taken == word);
        let is_free = !taken(name) && !name.starts_with("pg") && !known.packages.contains(name.as_str());
        ensure!(is_free, "{name} is a word of SQL or Rust, a package, or there already: take another, such as {name}s");
        let owner = owner.clone().unwrap_or_else(|| name.clone());
        let team = owner.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        ensure!(team && (1..=60).contains(&owner.len()), "{owner:?}: an owner is a team: letters a to z, digits and -");
        let [first, second] = aggregates.as_slice() else { bail!("name two aggregates, with a comma between") };
        for aggregate in [first, second] {
            let tokens = aggregate.split('_');
            let snake =
                tokens.clone().all(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_lowercase()));
            ensure!(
                snake && (2..=30).contains(&aggregate.len()),
                "{aggregate:?}: an aggregate has 2 to 30 letters a to z, with single _ between words"
            );
            ensure!(
                !taken(aggregate),
                "{aggregate:?} is a word of SQL, of Rust, or of every service: take another, such as {}",
                format_args!("{name}_{aggregate}")
            );
        }
        let distinct: BTreeSet<_> = [first.clone(), second.clone(), plural(first), plural(second)].into();
        ensure!(
            distinct.len() == 4 && first != name && second != name,
            "{first}, {second} and {name} must differ, in the plural too"
        );
        let within =
            |one: &str, other: &str| one.starts_with(&format!("{other}_")) || one.ends_with(&format!("_{other}"));
        ensure!(
            !within(first, second) && !within(second, first),
            "{first} and {second}: one must not begin or end with the other"
        );
        for aggregate in [first, second] {
            let path = format!("/v1/{}", plural(aggregate).replace('_', "-"));
            let served = ["\"", "/", ":"].iter().any(|end| known.paths.contains(&format!("{path}{end}")));
            ensure!(!served, "{path} is served already: take another name, such as {name}_{aggregate}");
        }
        // Each service has a hundred of its own, of those that start with 17.
        let port = (known.highest_port / 100 + 1) * 100 + 1;
        ensure!(port < 18_000, "no port below 18000 is left");
        Ok(Self { service: name.clone(), owner, aggregates: [first.clone(), second.clone()], port })
    }

    /// A text of the templates, with these names.
    fn put_into(&self, text: &str) -> String {
        let [first, second] = &self.aggregates;
        let mut words = vec![
            ("harbourmaster".to_owned(), self.owner.clone()),
            ("17097".to_owned(), self.port.to_string()),
            ("17098".to_owned(), (self.port + 1).to_string()),
        ];
        for (word, name) in [("vessel", first), ("logbook", second)] {
            let many = plural(name);
            let kebab = many.replace('_', "-");
            words.push((format!("/v1/{word}s"), format!("/v1/{kebab}")));
            words.push((format!("-{word}s"), format!("-{kebab}")));
            let vowel = name.starts_with(['a', 'e', 'i', 'o', 'u']);
            for (article, between) in [("a", " "), ("A", " "), ("a", "_")] {
                let n = if vowel { "n" } else { "" };
                words.push((format!("{article}{between}{word}"), format!("{article}{n}{between}{name}")));
            }
            words.push((format!("{word}s"), many.clone()));
            words.push((format!("{}s", pascal(word)), pascal(&many)));
            words.push((word.to_owned(), name.clone()));
            words.push((pascal(word), pascal(name)));
            words.push((word.to_uppercase(), name.to_uppercase()));
        }
        words.push(("harbour".to_owned(), self.service.clone()));
        words.push(("Harbour".to_owned(), pascal(&self.service)));
        words.push(("HARBOUR".to_owned(), self.service.to_uppercase()));
        replaced(text, &words)
    }
}

/// Replaces each of these words, the first that fits at a position, and none within a replacement.
fn replaced(text: &str, words: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let is_article = |word: &str| word[1..].starts_with([' ', '_']);
        let begins = !out.ends_with(|c: char| c.is_alphanumeric());
        let fits = words.iter().find(|(word, _)| rest.starts_with(word.as_str()) && (begins || !is_article(word)));
        if let Some((word, name)) = fits {
            out.push_str(name);
            rest = &rest[word.len()..];
        } else {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}

fn pascal(snake: &str) -> String {
    let word =
        |word: &str| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)).collect::<String>();
    snake.split('_').map(word).collect()
}

fn plural(singular: &str) -> String {
    let vowel = |c: char| matches!(c, 'a' | 'e' | 'i' | 'o' | 'u');
    match singular.strip_suffix('y') {
        Some(stem) if !stem.ends_with(vowel) => format!("{stem}ies"),
        _ if ["s", "x", "z", "ch", "sh"].iter().any(|end| singular.ends_with(end)) => format!("{singular}es"),
        _ => format!("{singular}s"),
    }
}

/// The new files, by their paths below the root.
fn files(root: &Path, names: &Names) -> Result<Vec<(PathBuf, String)>, anyhow::Error> {
    let templates = root.join(TEMPLATES);
    let mut found = Vec::new();
    let mut folders = vec![templates.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let below = path.strip_prefix(&templates)?.to_str().context("a template's name is no text")?;
            let target = PathBuf::from(names.put_into(below));
            ensure!(!root.join(&target).exists(), "{} is there already", target.display());
            found.push((target, names.put_into(&text)));
        }
    }
    found.sort();
    Ok(found)
}

/// The changed files: each gets some lines before a known one.
fn edits(root: &Path, names: &Names) -> Result<Vec<(PathBuf, String)>, anyhow::Error> {
    let Names { service, owner, .. } = names;
    let row = names.put_into(
        r#"    Service {
        port: Some(17097),
        serves: &["flotilla.harbour.v1.HarbourService"],
        database: Some(Database { of_no_tenant: &["inbox", "inbox_dead", "inbox_lease"] }),
        produces: true,
        durables: &[
            // A created vessel gets its logbook, and a deleted one loses it.
            handler("harbour-logbooks", harbour::SERVICE, &[harbour::VesselCreatedV1::TYPE, harbour::VesselDeletedV1::TYPE]),
            tenants("harbour-tenants"),
        ],
        page_token_key: Some("harbour-page-token-key"),
        ..service(harbour::SERVICE, harbour::OWNER, 17098)
    },
"#,
    );
    let owned = format!(
        "/services/{service}/ @flotilla/{owner}\n/crates/contracts/src/events/{service}.rs @flotilla/{owner}\n"
    );
    let edit = |file: &str, insert: &str, before: &str| {
        let text = std::fs::read_to_string(root.join(file)).with_context(|| format!("reading {file}"))?;
        let at =
            text.find(before).with_context(|| format!("{file} has no {before:?}, before which the service belongs"))?;
        let (head, tail) = text.split_at(at);
        Ok::<_, anyhow::Error>((PathBuf::from(file), format!("{head}{insert}{tail}")))
    };
    let mut table = edit(TABLE, &row, "    Service { port: Some(8080), edge: true")?;
    // The events that the row names.
    table.1 = table.1.replacen(
        "use contracts::events::{EventType as _, ",
        &format!("use contracts::events::{{EventType as _, {service}, "),
        1,
    );
    ensure!(table.1.contains(&format!("as _, {service}, ")), "{TABLE} does not import events as it did");
    let events = edit(EVENTS, &format!(", {service}"), ");\n\n/// Every event type of the fleet.")?;
    Ok(vec![edit(OWNERS, &owned, "/services/gateway/ ")?, events, table])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let packages = ["todo", "proto", "serde"].map(ToOwned::to_owned).into();
        Known { packages, paths: r#"get: "/v1/todos/{id}""#.to_owned(), highest_port: 17_302 }
    }

    fn args(name: &str, aggregates: &[&str]) -> ServiceArgs {
        let aggregates = aggregates.iter().map(|&name| name.to_owned()).collect();
        ServiceArgs { name: name.to_owned(), owner: None, aggregates }
    }

    #[test]
    fn names_take_the_place_of_those_of_the_templates() {
        let names = Names::of(&args("raft", &["oar", "life_policy"]), &known()).unwrap();
        for (template, text) in [
            ("A vessel, a logbook and data vessel_id", "An oar, a life_policy and data oar_id"),
            ("VesselCreatedV1 LOGBOOK_EXISTS", "OarCreatedV1 LIFE_POLICY_EXISTS"),
            (
                "/v1/logbooks/{id} list_logbooks ListLogbooks",
                "/v1/life-policies/{id} list_life_policies ListLifePolicies",
            ),
            ("flotilla.harbour.v1.HarbourService", "flotilla.raft.v1.RaftService"),
            ("EVENTS_HARBOUR harbour-logbooks", "EVENTS_RAFT raft-life-policies"),
            ("owner \"harbourmaster\"", "owner \"raft\""),
            ("fn a_vessel_gets_a_logbook", "fn an_oar_gets_a_life_policy"),
        ] {
            assert_eq!(names.put_into(template), text);
        }
    }

    #[test]
    fn names_that_would_not_work_are_refused_with_the_reason() {
        for (name, aggregates, why) in [
            ("todo", ["a_b", "c_d"], "or there already"),
            ("match", ["a_b", "c_d"], "a word of SQL or Rust"),
            ("serde", ["a_b", "c_d"], "a package"),
            ("pgraft", ["a_b", "c_d"], "take another"),
            ("raft", ["todo", "c_d"], "/v1/todos is served already"),
            ("raft", ["tenant", "c_d"], "is a word of"),
            ("raft", ["oar", "oar_draft"], "begin or end with the other"),
            ("Raft", ["a_b", "c_d"], "2 to 40 letters"),
            ("2nd", ["a_b", "c_d"], "a letter first"),
            ("raft", ["order", "c_d"], "take another, such as raft_order"),
            ("raft", ["match", "c_d"], "is a word of"),
            ("raft", ["a__b", "c_d"], "single _"),
            ("raft", ["in-voice", "c_d"], "single _"),
            ("raft", ["oar", "oar"], "must differ"),
            ("raft", ["oar", "oars"], "must differ"),
            ("raft", ["raft", "oar"], "must differ"),
        ] {
            let refused = Names::of(&args(name, &aggregates), &known()).unwrap_err().to_string();
            assert!(refused.contains(why), "{name} {aggregates:?}: {refused}");
        }
        assert!(Names::of(&args("raft", &["oar"]), &known()).is_err());
    }

    #[test]
    fn the_plural_is_the_usual_one() {
        for (one, many) in
            [("item", "items"), ("policy", "policies"), ("key", "keys"), ("address", "addresses"), ("box", "boxes")]
        {
            assert_eq!(plural(one), many);
        }
    }
}
