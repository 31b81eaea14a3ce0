//! The credentials that were issued to event consumers that are no service of the fleet.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use contracts::TenantId;
use fleet::Login;
use serde::{Deserialize, Serialize};

use super::keys::{credentials_file, folder};
use crate::stack_dir::StackDir;
use crate::supervisor::now;

/// An issued credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Team {
    /// The tenant whose events it reads.
    pub tenant: TenantId,
    /// Its name, unique within the tenant.
    pub name: String,
    /// The service that publishes the events.
    pub events: String,
    /// When it was issued.
    pub created: DateTime<Utc>,
    /// When it expires.
    pub expires: DateTime<Utc>,
}

impl Team {
    /// Its login.
    #[must_use]
    pub fn login(&self) -> Login {
        fleet::team(&self.name, &self.tenant, &self.events)
    }

    /// Its durable consumer, and the name of its login.
    #[must_use]
    pub fn durable(&self) -> String {
        fleet::team_durable(&self.name, &self.tenant)
    }

    /// Whether it has expired.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.expires <= now()
    }

    /// The path of its credentials file.
    #[must_use]
    pub fn credentials(&self, home: &StackDir) -> PathBuf {
        credentials_file(home, &self.durable())
    }
}

/// Every credential that was issued and not revoked.
///
/// # Errors
/// The folder cannot be read.
pub fn all(home: &StackDir) -> Result<Vec<Team>, anyhow::Error> {
    let mut teams = Vec::new();
    for entry in fs::read_dir(folder(home)?)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "team") {
            let team = serde_json::from_slice(&fs::read(&path)?);
            teams.push(team.with_context(|| format!("reading {}", path.display()))?);
        }
    }
    teams.sort_by_key(|team: &Team| team.durable());
    Ok(teams)
}
