//! Who may sign a tenant up, and how often.

use clap::{Args, ValueEnum};

/// How many tenants one person signs up in an hour.
const OF_ONE: i64 = 5;

/// Whether people sign tenants up by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Everybody whom the provider knows.
    Open,
    /// Nobody.
    Closed,
}

/// The rules of signing up.
#[derive(Debug, Clone, Args)]
pub struct SignUp {
    /// Whether people sign tenants up by themselves.
    #[arg(long, env = "FLOTILLA_SIGN_UP", default_value = "closed")]
    pub sign_up: Mode,
    /// How many tenants all of them together sign up in an hour.
    #[arg(long, env = "FLOTILLA_SIGN_UPS_AN_HOUR", default_value = "60")]
    pub sign_ups_an_hour: u32,
}

/// Why nobody signs up now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// By configuration.
    #[error("nobody signs up here by themselves: ask whoever runs this fleet")]
    Closed,
    /// Too many did.
    #[error("too many tenants signed up within the last hour: try again later")]
    TooMany,
}

impl SignUp {
    /// Whether a person may sign one more up, by how many all signed up within the last hour, and how many this one did.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn admits(&self, (all, own): (i64, i64)) -> Result<(), Refused> {
        match self.sign_up {
            Mode::Closed => Err(Refused::Closed),
            Mode::Open if all >= i64::from(self.sign_ups_an_hour) || own >= OF_ONE => Err(Refused::TooMany),
            Mode::Open => Ok(()),
        }
    }
}
