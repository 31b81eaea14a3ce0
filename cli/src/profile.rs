//! Where a fleet is that does not run in a folder of this machine, and by what the command reaches it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use authz::JwksSource;
use clap::Args;
use devstack::issuer::ISSUER;
use serde::{Deserialize, Serialize};

/// The profile of the fleet in the stack's folder; it is not written anywhere.
pub const LOCAL: &str = "local";

/// A fleet that is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Args)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    #[command(flatten)]
    #[serde(flatten)]
    pub addresses: Addresses,
    /// The folder with the logins of the administration of NATS, in secrets/nats, and with the authorities of the fleet's certificates, in
    /// tls/ca.crt; on a development fleet also with the issuer's key.
    #[arg(long, value_name = "FOLDER")]
    pub keys: PathBuf,
    /// The command that prints an operator's token, run by `sh -c` when FLOTILLA_OPERATOR_TOKEN is not set.
    #[arg(long, value_name = "COMMAND")]
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token_command: Option<String>,
}

/// Where the parts of a fleet are that the command connects to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Args)]
pub struct Addresses {
    /// The gateway's URL.
    #[arg(long, value_name = "URL", value_parser = url)]
    pub gateway: String,
    /// The operations port of a service, once for each replica: SERVICE=HOST:PORT, or SERVICE=https://HOST:PORT. `status` and `lag` ask
    /// all of them.
    #[arg(long, value_name = "SERVICE=HOST:PORT", value_parser = of_service)]
    #[serde(with = "by_service")]
    pub ops: Vec<(String, String)>,
    /// NATS: nats://host:port, or tls://host:port.
    #[arg(long, value_name = "URL")]
    pub nats: String,
    /// The issuer's key set: http://, https:// or file://.
    #[arg(long, value_name = "URL", value_parser = key_set)]
    pub jwks: String,
    /// The issuer that operators' tokens name.
    #[arg(long, default_value = ISSUER)]
    pub issuer: String,
}

mod by_service {
    use super::{BTreeMap, Deserialize, Serialize};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(ops: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
        let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        ops.iter().for_each(|(name, address)| all.entry(name).or_default().push(address));
        all.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
        let all = BTreeMap::<String, Vec<String>>::deserialize(from)?;
        let of = |(name, ports): (String, Vec<String>)| ports.into_iter().map(move |port| (name.clone(), port));
        Ok(all.into_iter().flat_map(of).collect())
    }
}

fn url(text: &str) -> Result<String, &'static str> {
    let plain = text.starts_with("http://") || text.starts_with("https://");
    if plain { Ok(text.trim_end_matches('/').to_owned()) } else { Err("must start with http:// or https://") }
}

fn key_set(text: &str) -> Result<String, &'static str> {
    text.parse::<JwksSource>().map(|_| text.to_owned())
}

fn of_service(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("`{text}` is no operations port: say SERVICE=HOST:PORT or SERVICE=https://HOST:PORT");
    let (service, address) = text.split_once('=').ok_or_else(wrong)?;
    let place = address.strip_prefix("https://").unwrap_or(address).rsplit_once(':');
    let port = place.filter(|(host, _)| !host.is_empty() && !host.contains('/'));
    let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
    port.filter(|port| *port != 0).ok_or_else(wrong)?;
    let known = || fleet::SERVICES.iter().map(|service| service.name).collect::<Vec<_>>().join(", ");
    fleet::named(service).ok_or_else(|| format!("there is no service {service}: {}", known()))?;
    Ok((service.to_owned(), address.to_owned()))
}

impl Profile {
    /// Checks what belongs together.
    pub fn check(&self) -> Result<(), anyhow::Error> {
        let missing: Vec<_> = fleet::SERVICES
            .iter()
            .map(|service| service.name)
            .filter(|service| !self.addresses.ops.iter().any(|(name, _)| name == service))
            .collect();
        ensure!(missing.is_empty(), "say --ops SERVICE=HOST:PORT for each service; missing: {}", missing.join(", "));
        ensure!(self.keys.is_dir(), "{} is no folder", self.keys.display());
        Ok(())
    }
}

/// Reads a profile.
pub fn read(name: &str) -> Result<Profile, anyhow::Error> {
    let file = file(name)?;
    let text = match fs::read_to_string(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no profile {name}: `flotilla profile list` shows which there are")
        }
        read => read.with_context(|| format!("reading {}", file.display()))?,
    };
    let others = fs::metadata(&file)?.permissions().mode() & 0o077;
    ensure!(others == 0, "others may read {}, which names commands and keys: chmod 600 it", file.display());
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not of this release: add the profile again", file.display()))
}

/// The folder of all profiles.
pub fn folder() -> Result<PathBuf, anyhow::Error> {
    let xdg = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let config = xdg.or(home).context("set HOME or XDG_CONFIG_HOME: profiles are kept there")?;
    Ok(config.join("flotilla/profiles"))
}

/// The file of a profile.
pub fn file(name: &str) -> Result<PathBuf, anyhow::Error> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(plain && (1..=32).contains(&name.len()), "`{name}` is no profile's name: 1 to 32 of a-z, 0-9 and -");
    ensure!(name != LOCAL, "the profile {LOCAL} is the fleet in the stack's folder: choose another name");
    Ok(folder()?.join(format!("{name}.json")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operations_port_is_a_services() {
        for fine in ["10.0.0.1:9090", "https://todo-ops:9090"] {
            assert_eq!(of_service(&format!("todo={fine}")).unwrap(), ("todo".to_owned(), fine.to_owned()));
        }
        for wrong in [
            "todo",
            "todo=",
            "todo=host",
            "todo=:9090",
            "todo=host:0",
            "todo=host:port",
            "tudo=host:1",
            "todo=https://:1",
            "todo=http://host:1",
            "todo=https://https://host:1",
        ] {
            assert!(of_service(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_is_no_path() {
        for wrong in ["", "..", "a/b", "A", "local", "a.b"] {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }
}
