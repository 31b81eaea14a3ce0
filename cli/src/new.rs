//! `flotilla new service`: writes a service from the templates of the repository, and its row in the fleet's table.
//!
//! The templates are a service `harbour` with the aggregates `vessel` and `logbook`, which these names take the place of, in texts and
//! in the names of files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};

/// The templates, as they lie below the root of the repository.
const TEMPLATES: &str = "templates/service";
/// What the fleet knows of its services.
const TABLE: &str = "crates/fleet/src/services.rs";
/// The registries of events.
const EVENTS: &str = "crates/contracts/src/events/mod.rs";
/// Who is asked.
const OWNERS: &str = ".github/CODEOWNERS";

/// Words that no aggregate may be called, for a table, a module and a struct have its name: reserved ones of PostgreSQL and of Rust, and
/// what the templates call otherwise.
const TAKEN: &str = "all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create current_user \
    default deferrable desc distinct do else end except false fetch for foreign from grant group having in initially intersect into lateral \
    leading limit localtime not null offset on only or order placing primary references returning select session_user some symmetric table \
    then to trailing true union unique user using variadic when where window with \
    abstract async await become box break const continue crate dyn enum extern final fn gen if impl let loop macro match mod move mut \
    override priv pub ref return self static struct super trait try type typeof unsafe unsized use virtual while yield \
    about actor aggregate app commands config error event events grpc idempotency inbox lib main name notes operators outbox outgoing page \
    permissions program row schema state status store text texts these wire";

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
    /// Its aggregates, in the singular and snake case: a created one of the first kind brings forth one of the second, which is deleted
    /// with it.
    #[arg(long, value_delimiter = ',', default_values = ["item", "detail"])]
    aggregates: Vec<String>,
}

pub fn run(command: &NewCommand) -> Result<(), anyhow::Error> {
    let NewCommand::Service(args) = command;
    let root = root()?;
    let names = Names::of(args)?;
    let files = files(&root, &names)?;
    let edits = edits(&root, &names)?;
    for (path, text) in files.iter().chain(&edits) {
        let path = root.join(path);
        let folder = path.parent().context("a file has a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let formatted = ["--package", &names.service, "--package", "contracts", "--package", "fleet"];
    tool(&root, "cargo", &[&["fmt"], formatted.as_slice()].concat())?;
    tool(&root, "make", &["schemas"])?;
    let lines: usize = files.iter().map(|(_, text)| text.lines().count()).sum();
    println!("Wrote {lines} lines in {} files, and changed {}:", files.len(), edits.len());
    for (path, _) in &edits {
        println!("  {}", path.display());
    }
    println!(
        "(make schemas and cargo changed schemas/ and Cargo.lock.) Now: make build, cargo test --package {}.",
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
    ensure!(
        status.success(),
        "the files are written, and `{program} {}` has failed: mend that, and run it again",
        args.join(" ")
    );
    Ok(())
}

/// What takes the place of the names of the templates.
#[derive(Debug)]
struct Names {
    service: String,
    owner: String,
    aggregates: [String; 2],
    port: u16,
}

impl Names {
    fn of(args: &ServiceArgs) -> Result<Self, anyhow::Error> {
        let ServiceArgs { name, owner, aggregates } = args;
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        ensure!(
            plain && begins && (2..=40).contains(&name.len()),
            "{name:?}: a service has 2 to 40 letters a to z and digits, a letter first"
        );
        ensure!(fleet::named(name).is_none(), "there is a service {name}");
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
            let taken = TAKEN.split_whitespace().any(|word| word == aggregate);
            ensure!(
                !taken,
                "{aggregate:?} is a word of SQL, of Rust, or of every service: take another, such as {}",
                format_args!("{name}_{aggregate}")
            );
        }
        let distinct: BTreeSet<_> = [first.clone(), second.clone(), plural(first), plural(second)].into();
        ensure!(
            distinct.len() == 4 && first != name && second != name,
            "{first}, {second} and {name} must differ, in the plural too"
        );
        // Each service has a hundred of its own, of those that start with 17.
        let used = fleet::SERVICES.iter().flat_map(|service| service.port.into_iter().chain([service.ops_port]));
        let highest = used.filter(|port| (17_000..18_000).contains(port)).max().unwrap_or(17_000);
        let port = (highest / 100 + 1) * 100 + 1;
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

/// Replaces each of these words, the first that fits at a place, and none within what another was replaced by.
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

/// The files that are changed: each takes some lines before one that is known.
fn edits(root: &Path, names: &Names) -> Result<Vec<(PathBuf, String)>, anyhow::Error> {
    let Names { service, owner, .. } = names;
    let row = names.put_into(
        r#"    Service {
        port: Some(17097),
        serves: &["flotilla.harbour.v1.HarbourService"],
        database: Some(Database { of_no_tenant: &["inbox", "inbox_dead", "inbox_lease"] }),
        produces: true,
        // A created vessel gets its logbook, and a deleted one loses it.
        durables: &[handler("harbour-logbooks", harbour::SERVICE, &[harbour::VesselCreatedV1::TYPE, harbour::VesselDeletedV1::TYPE])],
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

    fn args(name: &str, aggregates: &[&str]) -> ServiceArgs {
        let aggregates = aggregates.iter().map(|&name| name.to_owned()).collect();
        ServiceArgs { name: name.to_owned(), owner: None, aggregates }
    }

    #[test]
    fn names_take_the_place_of_those_of_the_templates() {
        let names = Names::of(&args("raft", &["oar", "life_policy"])).unwrap();
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
            ("todo", ["a_b", "c_d"], "there is a service todo"),
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
            let refused = Names::of(&args(name, &aggregates)).unwrap_err().to_string();
            assert!(refused.contains(why), "{name} {aggregates:?}: {refused}");
        }
        assert!(Names::of(&args("raft", &["oar"])).is_err());
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
