//! Where the services are that a process calls.

use std::collections::BTreeMap;
use std::str::FromStr;

/// The addresses of each gRPC service, by its full name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(pub BTreeMap<String, Vec<String>>);

impl FromStr for Addresses {
    /// All errors, a sentence each.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut wrong = Vec::new();
        let mut addresses: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for upstream in text.split(',') {
            match upstream.split_once('=') {
                Some((name, address)) if proto::POOL.get_service_by_name(name).is_none() => {
                    wrong.push(format!("there is no service {name} (for {address})"));
                }
                Some((name, address)) if address.starts_with("http://") || address.starts_with("https://") => {
                    addresses.entry(name.to_owned()).or_default().push(address.to_owned());
                }
                _ => wrong.push(format!("{upstream} is not <service>=http://<host>:<port>, or with https://")),
            }
        }
        if wrong.is_empty() { Ok(Self(addresses)) } else { Err(wrong.join("; ")) }
    }
}
