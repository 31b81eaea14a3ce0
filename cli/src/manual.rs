//! `flotilla completion` and `flotilla manual`: what shells and `man` know of the command, from the command itself.

use std::path::Path;

use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;
use serde_json::json;

use crate::context::Context;
use crate::outbox::say;

const NAME: &str = "flotilla";

/// Prints what completes the command line in this shell.
///
/// # Errors
/// The output is closed.
pub fn completion(mut command: Command, shell: Shell) -> Result<(), anyhow::Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    print!("{}", String::from_utf8(script)?);
    Ok(())
}

/// Writes a page for the command and for each below it.
///
/// # Errors
/// A file cannot be written.
pub fn write(context: &Context, command: Command, out: &Path) -> Result<(), anyhow::Error> {
    std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    clap_mangen::generate_to(command, out).with_context(|| format!("writing into {}", out.display()))?;
    let pages = std::fs::read_dir(out)?.count();
    let text = format!("{pages} pages are in {}: man {}/{NAME}.1", out.display(), out.display());
    say(context, &json!({"folder": out, "pages": pages}), &text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Args;

    #[test]
    fn every_command_and_every_argument_says_what_it_is_for() {
        fn silent(command: &Command, path: &str, found: &mut Vec<String>) {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                if argument.get_help().is_none() {
                    found.push(format!("{path} {}", argument.get_id()));
                }
            }
            for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
                let path = format!("{path} {}", below.get_name());
                if below.get_about().is_none() {
                    found.push(path.clone());
                }
                silent(below, &path, found);
            }
        }
        let mut found = Vec::new();
        silent(&Args::command(), NAME, &mut found);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn shells_complete_every_command_and_the_manual_has_a_page_for_each() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), NAME, &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["verify", "nats-credentials", "replay"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
        let folder = std::env::temp_dir().join(format!("flotilla-man-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        clap_mangen::generate_to(Args::command(), &folder).unwrap();
        let page = std::fs::read_to_string(folder.join("flotilla.1")).unwrap();
        assert!(page.contains("Exit codes"), "{page}");
        for name in ["flotilla-verify.1", "flotilla-dlq.1"] {
            assert!(folder.join(name).exists(), "{name}");
        }
        assert!(!folder.join("flotilla-supervise.1").exists(), "what is hidden has none");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
