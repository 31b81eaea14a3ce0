//! How a person signed in, and what a tenant demands of that before some acts (RFC 9470). Pure: the time is an argument.

use serde::{Deserialize, Serialize};

/// How far clocks may differ, as for tokens.
const LEEWAY_SECONDS: i64 = crate::trusted::LEEWAY_SECONDS as i64;

/// What a tenant demands of the sign-in before some acts. It holds acts, and classes or an age or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepUp {
    /// The acts, by the names of their RPCs: `DeleteTodo`.
    pub acts: Vec<String>,
    /// The classes of authentication (`acr`), the preferred first: one of them is demanded. Without any, each will do.
    #[serde(default)]
    pub acr_values: Vec<String>,
    /// How many seconds ago the person may have signed in: 60 to 86,400. None: whenever.
    pub max_age: Option<i64>,
}

/// How a person signed in, as the provider says, and what the tenant demands of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SignIn {
    /// The class of authentication (OpenID Connect Core, 2).
    pub acr: Option<String>,
    /// When the person signed in, in seconds since 1970.
    pub auth_time: Option<i64>,
    /// What the tenant demands; none where it demands nothing.
    pub step_up: Option<StepUp>,
}

/// The sign-in is none that the tenant demands. The text is for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "your tenant demands another sign-in for this: sign in again by what acr_values and max_age say, and send the new token"
)]
pub struct Insufficient {
    /// See [`StepUp::acr_values`].
    pub acr_values: Vec<String>,
    /// See [`StepUp::max_age`].
    pub max_age: Option<i64>,
}

impl StepUp {
    /// Checks a sign-in, at this time.
    ///
    /// # Errors
    /// It is of another class, or too long ago, or the provider did not say which or when.
    pub fn check(&self, acr: Option<&str>, auth_time: Option<i64>, now: i64) -> Result<(), Insufficient> {
        let of_class = self.acr_values.is_empty() || acr.is_some_and(|acr| self.acr_values.iter().any(|it| it == acr));
        let recent = |most: i64| {
            let ago = auth_time.map(|at| now.saturating_sub(at));
            ago.is_some_and(|ago| (-LEEWAY_SECONDS..=most.saturating_add(LEEWAY_SECONDS)).contains(&ago))
        };
        if of_class && self.max_age.is_none_or(recent) {
            return Ok(());
        }
        Err(Insufficient { acr_values: self.acr_values.clone(), max_age: self.max_age })
    }
}

impl SignIn {
    /// Checks whether it is enough for an act, at this time.
    ///
    /// # Errors
    /// As [`StepUp::check`].
    pub fn allows(&self, act: &str, now: i64) -> Result<(), Insufficient> {
        match &self.step_up {
            Some(step_up) if step_up.acts.iter().any(|marked| marked == act) => {
                step_up.check(self.acr.as_deref(), self.auth_time, now)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_act_demands_one_of_the_classes_and_a_recent_sign_in() {
        let step_up = |acr_values: &[&str], max_age| StepUp {
            acts: vec!["DeleteTodo".to_owned()],
            acr_values: acr_values.iter().map(|&acr| acr.to_owned()).collect(),
            max_age,
        };
        let now = 1_000_000;
        for (demanded, acr, auth_time, allowed) in [
            (step_up(&["mfa", "key"], None), Some("key"), None, true),
            (step_up(&["mfa", "key"], None), Some("mfa2"), None, false),
            (step_up(&["mfa"], None), None, Some(now), false),
            (step_up(&[], Some(300)), None, Some(now - 300), true),
            (step_up(&[], Some(300)), None, Some(now - 300 - LEEWAY_SECONDS - 1), false),
            (step_up(&[], Some(300)), Some("mfa"), None, false),
            (step_up(&["mfa"], Some(300)), Some("mfa"), Some(now), true),
            (step_up(&["mfa"], Some(300)), Some("mfa"), Some(0), false),
            (step_up(&["mfa"], Some(300)), Some("pwd"), Some(now), false),
            (step_up(&[], Some(300)), None, Some(i64::MIN), false),
            (step_up(&[], Some(300)), None, Some(now * 1_000), false),
        ] {
            let sign_in = SignIn { acr: acr.map(ToOwned::to_owned), auth_time, step_up: Some(demanded.clone()) };
            let refused = Insufficient { acr_values: demanded.acr_values.clone(), max_age: demanded.max_age };
            let wanted = if allowed { Ok(()) } else { Err(refused) };
            assert_eq!(sign_in.allows("DeleteTodo", now), wanted, "{sign_in:?}");
            assert_eq!(sign_in.allows("GetTodo", now), Ok(()), "it is not marked");
        }
        assert_eq!(SignIn::default().allows("DeleteTodo", now), Ok(()));
    }
}
