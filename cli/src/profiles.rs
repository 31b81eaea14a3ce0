//! `flotilla profile`: adds, lists and removes profiles.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use crate::context::Context;
use crate::outbox::say;
use crate::profile::{LOCAL, Profile, file, folder, read};
use crate::table;

#[derive(Debug, Clone, Subcommand)]
pub enum ProfileCommand {
    /// Add a profile, or replace the one of this name.
    Add {
        /// Its name: 1 to 32 of a-z, 0-9 and -.
        name: String,
        #[command(flatten)]
        profile: Profile,
    },
    /// List the profiles.
    List,
    /// Remove a profile. What it points to stays.
    Remove {
        /// Its name.
        name: String,
    },
}

pub fn run(context: &Context, command: &ProfileCommand) -> Result<(), anyhow::Error> {
    match command {
        ProfileCommand::Add { name, profile } => {
            profile.check()?;
            // A profile is used from any folder.
            let profile = Profile { keys: profile.keys.canonicalize()?, ..profile.clone() };
            let file = file(name)?;
            let part = file.with_extension("part");
            fs::create_dir_all(folder()?)?;
            fs::remove_file(&part).ok();
            let mut written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
            written.write_all(serde_json::to_string_pretty(&profile)?.as_bytes())?;
            fs::rename(&part, &file).with_context(|| format!("writing {}", file.display()))?;
            let text = format!("`flotilla --profile {name} status` asks the fleet at {}.", profile.addresses.gateway);
            say(context, &json!({"profile": name, "file": file}), &text);
        }
        ProfileCommand::List => {
            let mut all = BTreeMap::new();
            for entry in fs::read_dir(folder()?).into_iter().flatten() {
                let path = entry?.path();
                let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                if path.extension().is_some_and(|extension| extension == "json") {
                    all.insert(name.to_owned(), read(name).map_err(|error| format!("{error:#}")));
                }
            }
            if context.json {
                let shown = |profile: Result<Profile, String>| {
                    profile.map_or_else(|error| json!({"error": error}), |fine| json!(fine))
                };
                let all: BTreeMap<_, _> = all.into_iter().map(|(name, profile)| (name, shown(profile))).collect();
                println!("{}", serde_json::to_string_pretty(&all)?);
            } else {
                let local = vec![LOCAL.to_owned(), "the fleet in the stack's folder".to_owned(), "-".to_owned()];
                let row = |(name, profile): (String, Result<Profile, String>)| match profile {
                    Ok(profile) => vec![name, profile.addresses.gateway, profile.keys.display().to_string()],
                    Err(error) => vec![name, error, "-".to_owned()],
                };
                let rows: Vec<_> = std::iter::once(local).chain(all.into_iter().map(row)).collect();
                table::print(&["PROFILE", "GATEWAY", "KEYS"], &rows);
            }
        }
        ProfileCommand::Remove { name } => {
            fs::remove_file(file(name)?).with_context(|| format!("removing the profile {name}"))?;
            say(context, &json!({"removed": name}), &format!("The profile {name} is removed."));
        }
    }
    Ok(())
}
