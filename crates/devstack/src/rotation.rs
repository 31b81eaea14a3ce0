//! New secrets for a fleet that runs. Nothing that was handed out is refused before everybody can have what comes after it: a rotation is
//! staged, and finished once the processes have read what was staged. They look at their files every few seconds.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;
use reqwest::Url;
use serde_json::json;

use crate::stack::{password_file, roles};
use crate::stack_dir::{StackDir, random_hex};
use crate::{issuer, login, nats, postgres};

/// What can be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The passwords of the services' roles. Staged, services try the new one at each new connection, and PostgreSQL takes the old one.
    Databases,
    /// The credentials of services and of the administration. Staged, NATS takes both.
    Nats,
    /// The keys of page tokens. Staged, services read tokens by both, and make them by the old one; those that it has made are read until
    /// the next rotation.
    PageTokens,
    /// The password of OpenSearch. Staged, the proxy takes both; the old one until the next rotation.
    Search,
    /// The development issuer's key. Staged, it is published; what the old one has signed is trusted until the next rotation.
    Issuer,
}

/// All of them.
pub const ALL: [Kind; 5] = [Kind::Databases, Kind::Nats, Kind::PageTokens, Kind::Search, Kind::Issuer];

/// Draws what comes after, and writes it where the processes read it. Done again, what was staged before is kept where it may be in use.
///
/// # Errors
/// A file cannot be read or written.
pub fn stage(home: &StackDir, kind: Kind) -> Result<(), anyhow::Error> {
    match kind {
        Kind::Databases => {
            fleet::SERVICES.iter().filter(|service| service.database.is_some()).try_for_each(|service| {
                for role in ["owner", "app", "relay"] {
                    home.write_secret(&password_file(service.name, role), &random_hex(24)?)?;
                }
                let roles = roles(home, service.name)?;
                for (role, file) in service.logins() {
                    with_password(&home.path("secrets").join(file), home, roles.password(role))?;
                }
                Ok(())
            })
        }
        Kind::Nats => nats::renew(home),
        Kind::PageTokens => page_token_keys().try_for_each(|file| stage_line(home, file, || random_hex(24))),
        Kind::Search => stage_line(home, login::PASSWORDS, || random_hex(24)),
        Kind::Issuer => stage_line(home, issuer::KEYS, issuer::draw),
    }
}

/// Puts what was staged in the place of what was before. Servers are not asked: [`tell`] does that.
///
/// # Errors
/// A file cannot be read or written.
pub fn finish(home: &StackDir, kind: Kind) -> Result<(), anyhow::Error> {
    match kind {
        Kind::Databases => Ok(()),
        Kind::Nats => nats::revoke(home),
        Kind::PageTokens => page_token_keys().try_for_each(|file| finish_line(home, file)),
        Kind::Search => {
            finish_line(home, login::PASSWORDS)?;
            let password = home.secret(login::PASSWORDS)?;
            with_password(&home.path("secrets/opensearch-url"), home, &password)?;
            let file = home.path("secrets/opensearch.json");
            if let Some(text) = read(&file)? {
                let mut login: serde_json::Value = serde_json::from_str(&text)?;
                let url = login["url"].as_str().context("opensearch.json has no url")?;
                login["url"] = json!(changed(url, &password)?);
                login["password"] = json!(password);
                home.write_secret("opensearch.json", &login.to_string())?;
            }
            Ok(())
        }
        Kind::Issuer => finish_line(home, issuer::KEYS),
    }
}

/// Has the servers refuse what was before: PostgreSQL, as its superuser, and NATS.
///
/// # Errors
/// One does not answer, or refuses.
pub async fn tell(home: &StackDir, kind: Kind, superuser_url: &str, nats_url: &str) -> Result<(), anyhow::Error> {
    match kind {
        Kind::Databases => {
            let superuser = superuser_url.parse().context("the address of PostgreSQL")?;
            for service in fleet::SERVICES.iter().filter(|service| service.database.is_some()) {
                postgres::provision(&superuser, service.name, &roles(home, service.name)?, service.name).await?;
            }
            Ok(())
        }
        Kind::Nats => nats::announce(home, nats_url, &[]).await,
        Kind::PageTokens | Kind::Search | Kind::Issuer => Ok(()),
    }
}

fn page_token_keys() -> impl Iterator<Item = &'static str> {
    fleet::SERVICES.iter().filter_map(|service| service.page_token_key)
}

/// The file that holds a line that was staged, until it is finished.
fn next(name: &str) -> String {
    format!("{name}.next")
}

/// Adds a line behind the first, and drops the others.
fn stage_line(
    home: &StackDir,
    name: &str,
    draw: impl Fn() -> Result<String, anyhow::Error>,
) -> Result<(), anyhow::Error> {
    let present = home.lines(name, &draw)?.swap_remove(0);
    let staged = home.lines(&next(name), draw)?.swap_remove(0);
    home.write_secret(name, &format!("{present}\n{staged}")).map(drop)
}

/// Puts the staged line first. Without one, it is done already.
fn finish_line(home: &StackDir, name: &str) -> Result<(), anyhow::Error> {
    let file = home.path("secrets").join(next(name));
    let Some(staged) = read(&file)? else { return Ok(()) };
    let before = home.lines(name, || Ok(staged.clone()))?;
    let others = before.into_iter().filter(|line| *line != staged).take(1);
    let lines: Vec<_> = std::iter::once(staged.clone()).chain(others).collect();
    home.write_secret(name, &lines.join("\n"))?;
    std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
}

fn read(file: &Path) -> Result<Option<String>, anyhow::Error> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

/// Changes the password of the address in a file, where the file is there.
fn with_password(file: &Path, home: &StackDir, password: &str) -> Result<(), anyhow::Error> {
    let Some(url) = read(file)? else { return Ok(()) };
    let url = changed(&url, password).with_context(|| format!("{} holds no address", file.display()))?;
    let name = file.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
    home.write_secret(name, &url).map(drop)
}

fn changed(url: &str, password: &str) -> Result<String, anyhow::Error> {
    let mut url = Url::parse(url)?;
    // Without a login there is none to change.
    if url.password().is_some() {
        url.set_password(Some(password)).map_err(|()| anyhow::anyhow!("it takes no password"))?;
    }
    Ok(url.to_string())
}
