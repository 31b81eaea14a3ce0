//! New secrets for a fleet that runs. Nothing that was handed out is refused before everybody can have what comes after it: a rotation is
//! staged, and finished once the processes have read what was staged. They look at their files every few seconds.

use anyhow::Context as _;
use reqwest::Url;
use serde_json::json;

use crate::postgres::{self, ROLES, password_file};
use crate::stack_dir::{StackDir, random_hex, staged_file};
use crate::{issuer, login, nats};

/// What can be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The passwords of the services' roles. Staged, services have both: they try the new one, and PostgreSQL takes the old one.
    Databases,
    /// The credentials of services and of the administration. Staged, NATS takes both.
    Nats,
    /// The keys of page tokens. Staged, services read tokens by both, and make them by the old one; those that it has made are read until
    /// the next rotation.
    PageTokens,
    /// The password of OpenSearch. Staged, the proxy takes both; the old one until the next rotation.
    Search,
    /// The keys by which services say to identity who they are. Staged, identity takes both; the old one until the next rotation.
    Services,
    /// The development issuer's key. Staged, it is published; what the old one has signed is trusted until the next rotation.
    Issuer,
}

/// All of them.
pub const ALL: [Kind; 6] = [Kind::Databases, Kind::Nats, Kind::PageTokens, Kind::Search, Kind::Services, Kind::Issuer];

/// Draws what comes after, and writes it where the processes read it. Done again, what was staged before is kept: it may be in use.
///
/// # Errors
/// A file cannot be read or written.
pub fn stage(home: &StackDir, kind: Kind) -> Result<(), anyhow::Error> {
    match kind {
        Kind::Databases => {
            fleet::SERVICES.iter().filter(|service| service.database.is_some()).try_for_each(|service| {
                for role in ROLES {
                    let passwords = stage_before(home, &password_file(service.name, role))?;
                    let Some((_, name)) = service.logins().into_iter().find(|(of, _)| *of == role) else { continue };
                    // Where there is an address already: the same one, by each password.
                    if let Some(url) = home.read_secret(&name)?.as_deref().and_then(|urls| urls.lines().next()) {
                        let urls = passwords.iter().map(|word| changed(url, word)).collect::<Result<Vec<_>, _>>()?;
                        home.write_secret(&name, &urls.join("\n"))?;
                    }
                }
                Ok(())
            })
        }
        Kind::Nats => nats::renew(home),
        Kind::PageTokens => page_token_keys().try_for_each(|file| stage_line(home, file, || random_hex(24))),
        Kind::Search => stage_line(home, login::PASSWORDS, || random_hex(24)),
        Kind::Services => {
            service_keys().try_for_each(|file| stage_line(home, &file, issuer::draw))?;
            issuer::write_service_keys(home)
        }
        Kind::Issuer => stage_line(home, issuer::KEYS, issuer::draw),
    }
}

/// Puts what was staged in the place of what was before. Servers are not asked: [`apply`] does that.
///
/// # Errors
/// A file cannot be read or written.
pub fn finish(home: &StackDir, kind: Kind) -> Result<(), anyhow::Error> {
    match kind {
        Kind::Databases => fleet::SERVICES.iter().try_for_each(|service| {
            ROLES.iter().try_for_each(|role| home.remove_secret(&staged_file(&password_file(service.name, role))))
        }),
        Kind::Nats => nats::revoke(home),
        Kind::PageTokens => page_token_keys().try_for_each(|file| finish_line(home, file)),
        Kind::Search => {
            finish_line(home, login::PASSWORDS)?;
            let password = home.secret(login::PASSWORDS)?;
            if let Some(url) = home.read_secret("opensearch-url")? {
                home.write_secret("opensearch-url", &changed(&url, &password)?)?;
            }
            if let Some(text) = home.read_secret("opensearch.json")? {
                let mut login: serde_json::Value = serde_json::from_str(&text)?;
                let url = login["url"].as_str().context("opensearch.json has no url")?;
                login["url"] = json!(changed(url, &password)?);
                login["password"] = json!(password);
                home.write_secret("opensearch.json", &login.to_string())?;
            }
            Ok(())
        }
        Kind::Services => {
            service_keys().try_for_each(|file| finish_line(home, &file))?;
            issuer::write_service_keys(home)
        }
        Kind::Issuer => finish_line(home, issuer::KEYS),
    }
}

/// Has the servers refuse what was before: PostgreSQL, as its superuser, and NATS.
///
/// # Errors
/// One does not answer, or refuses.
pub async fn apply(home: &StackDir, kind: Kind, superuser_url: &str, nats_url: &str) -> Result<(), anyhow::Error> {
    match kind {
        Kind::Databases => {
            let superuser = superuser_url.parse().context("the address of PostgreSQL")?;
            for service in fleet::SERVICES.iter().filter(|service| service.database.is_some()) {
                let newest = postgres::newest_roles(home, service.name)?;
                postgres::provision(&superuser, service.name, &newest, service.name).await?;
            }
            Ok(())
        }
        Kind::Nats => nats::announce(home, nats_url, &[]).await,
        Kind::PageTokens | Kind::Search | Kind::Services | Kind::Issuer => Ok(()),
    }
}

fn service_keys() -> impl Iterator<Item = String> {
    fleet::SERVICES.iter().filter_map(fleet::Service::service_key)
}

fn page_token_keys() -> impl Iterator<Item = &'static str> {
    fleet::SERVICES.iter().filter_map(|service| service.page_token_key)
}

/// How many lines stay while another is staged.
const KEPT: usize = 2;

/// What is staged: drawn once, until it is finished.
fn staged(
    home: &StackDir,
    name: &str,
    draw: impl Fn() -> Result<String, anyhow::Error>,
) -> Result<String, anyhow::Error> {
    Ok(home.lines(&staged_file(name), draw)?.swap_remove(0))
}

/// Puts a line before the first. The others stay: somebody may not have read yet that they are not the first any more.
fn stage_before(home: &StackDir, name: &str) -> Result<Vec<String>, anyhow::Error> {
    let mut lines = home.lines(name, || random_hex(24))?;
    let staged = staged(home, name, || random_hex(24))?;
    lines.retain(|line| *line != staged);
    lines.truncate(KEPT);
    lines.insert(0, staged);
    home.write_secret(name, &lines.join("\n"))?;
    Ok(lines)
}

/// Puts a line behind the first. The others stay likewise.
fn stage_line(
    home: &StackDir,
    name: &str,
    draw: impl Fn() -> Result<String, anyhow::Error>,
) -> Result<(), anyhow::Error> {
    let mut lines = home.lines(name, &draw)?;
    let mut new = staged(home, name, &draw)?;
    // One that was finished but for its note.
    if lines.first() == Some(&new) {
        home.remove_secret(&staged_file(name))?;
        new = staged(home, name, draw)?;
    }
    lines.retain(|line| *line != new);
    lines.truncate(KEPT);
    lines.insert(1, new);
    home.write_secret(name, &lines.join("\n")).map(drop)
}

/// Puts the staged line first, and keeps one of those before. Without a staged one, it is done already.
fn finish_line(home: &StackDir, name: &str) -> Result<(), anyhow::Error> {
    let Some(staged) = home.read_secret(&staged_file(name))? else { return Ok(()) };
    let mut lines = home.lines(name, || Ok(staged.clone()))?;
    lines.retain(|line| *line != staged);
    lines.truncate(1);
    lines.insert(0, staged);
    home.write_secret(name, &lines.join("\n"))?;
    home.remove_secret(&staged_file(name))
}

/// An address with another password.
fn changed(url: &str, password: &str) -> Result<String, anyhow::Error> {
    let mut url = Url::parse(url)?;
    // Without a login there is none to change.
    if url.password().is_some() {
        url.set_password(Some(password)).map_err(|()| anyhow::anyhow!("the address takes no password"))?;
    }
    Ok(url.to_string())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn lines(home: &StackDir) -> Vec<String> {
        home.lines("key", || unreachable!("it is there")).unwrap()
    }

    #[test]
    fn a_step_that_was_cut_off_or_done_twice_loses_nothing() {
        let folder = std::env::temp_dir().join(format!("flotilla-rotation-{}", random_hex(6).unwrap()));
        let home = StackDir::open(&folder).unwrap();
        let drawn = Cell::new(0);
        let draw = || Ok(drawn.replace(drawn.get() + 1).to_string());
        stage_line(&home, "key", draw).unwrap();
        assert_eq!(lines(&home), ["0", "1"]);
        stage_line(&home, "key", draw).unwrap();
        assert_eq!(lines(&home), ["0", "1"], "what is staged stays staged");
        finish_line(&home, "key").unwrap();
        finish_line(&home, "key").unwrap();
        assert_eq!(lines(&home), ["1", "0"]);
        // The next one at once: what some still use is taken until it is finished.
        stage_line(&home, "key", draw).unwrap();
        assert_eq!(lines(&home), ["1", "2", "0"]);
        finish_line(&home, "key").unwrap();
        assert_eq!(lines(&home), ["2", "1"]);
        // Cut off between the lines and the note.
        home.write_secret("key.next", "2").unwrap();
        stage_line(&home, "key", draw).unwrap();
        assert_eq!(lines(&home), ["2", "3", "1"]);
        // A password of PostgreSQL: the new one is tried first, and the old one is there for whoever starts.
        let first = stage_before(&home, "password").unwrap();
        assert_eq!(stage_before(&home, "password").unwrap(), first);
        home.remove_secret("password.next").unwrap();
        let second = stage_before(&home, "password").unwrap();
        assert_eq!((second.len(), &second[1..]), (3, &first[..]));
        home.wipe().unwrap();
    }

    #[test]
    fn an_address_keeps_all_but_its_password() {
        let url = "postgres://todo_app:old@db:5432/todo?sslmode=verify-full&sslrootcert=/tls/ca.crt";
        assert_eq!(changed(url, "new").unwrap(), url.replace("old", "new"));
        assert_eq!(changed("http://127.0.0.1:9200", "new").unwrap(), "http://127.0.0.1:9200/");
    }
}
