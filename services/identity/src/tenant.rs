//! What is known of a tenant, and its changes. Pure: the time and new ids are arguments.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use authz::{StepUp, is_acr};
use chrono::{DateTime, Utc};
use contracts::events::identity::{TenantRecordId, TenantStatus};
use contracts::text::is_misleading;
use contracts::{TenantId, UserId};
use uuid::Uuid;

use crate::texts::{Country, Currency, Email, Name, TimeZone};

/// What is known of a tenant. It does not hold whether it is erased: then it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its slug.
    pub slug: TenantId,
    /// Its name.
    pub name: Name,
    /// Its time zone.
    pub time_zone: TimeZone,
    /// Its country.
    pub country: Country,
    /// The currency that it pays in.
    pub currency: Currency,
    /// Where invoices go; none of one that was adopted, until it names one, and once it is erased.
    pub billing_email: Option<Email>,
    /// Whether it may write.
    pub status: TenantStatus,
    /// What it demands of a person's sign-in before some acts.
    pub step_up: Option<StepUp>,
    /// When it signed up, or was adopted.
    pub create_time: DateTime<Utc>,
    /// When it was last changed.
    pub update_time: DateTime<Utc>,
    /// Who signed it up; of one that was adopted, its first owner.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// The fields of a new tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantDraft {
    /// Its name.
    pub name: Name,
    /// Its time zone.
    pub time_zone: TimeZone,
    /// Its country.
    pub country: Country,
    /// The currency that it pays in.
    pub currency: Currency,
    /// Where invoices go.
    pub billing_email: Option<Email>,
}

/// The changes; `None` keeps a field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TenantPatch {
    /// A new name.
    pub name: Option<Name>,
    /// A new time zone.
    pub time_zone: Option<TimeZone>,
    /// A new country.
    pub country: Option<Country>,
    /// A new currency.
    pub currency: Option<Currency>,
    /// A new address for invoices.
    pub billing_email: Option<Email>,
    /// What is demanded of a sign-in from now on, or nothing any more.
    pub step_up: Option<Option<StepUp>>,
}

/// The most acts of which a tenant demands a sign-in: every token names them.
const MAX_ACTS: usize = 30;
/// The most classes of authentication.
const MAX_ACR_VALUES: usize = 5;
/// How long ago a sign-in may be, in seconds. Less is over before the act is sent; more is no demand.
const MAX_AGE: RangeInclusive<i64> = 60..=86_400;

/// Why a demand is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepUpError {
    /// It has no act, too many, one twice, or one that is none.
    #[error(
        "must hold 1 to {MAX_ACTS} different acts, each the name of an RPC of the public API that wants a token: DeleteTodo"
    )]
    Acts,
    /// It has too many classes, or one that is none.
    #[error(
        "must hold at most {MAX_ACR_VALUES} acr_values, each of 1 to 200 visible characters of ASCII but quote and backslash"
    )]
    AcrValues,
    /// Its age is too short or too long.
    #[error("must have a max_age of 60 to 86,400 seconds, if any")]
    MaxAge,
    /// It demands nothing.
    #[error("must demand acr_values or a max_age")]
    Nothing,
}

/// What a tenant demands of a sign-in before these acts.
///
/// # Errors
/// See [`StepUpError`].
pub fn step_up(step_up: StepUp, is_act: impl Fn(&str) -> bool) -> Result<StepUp, StepUpError> {
    let StepUp { acts, acr_values, max_age } = &step_up;
    let each_once = acts.iter().collect::<BTreeSet<_>>().len() == acts.len();
    if !(1..=MAX_ACTS).contains(&acts.len()) || !each_once || !acts.iter().all(|act| is_act(act)) {
        return Err(StepUpError::Acts);
    }
    if acr_values.len() > MAX_ACR_VALUES || !acr_values.iter().all(|acr| is_acr(acr)) {
        return Err(StepUpError::AcrValues);
    }
    if max_age.is_some_and(|seconds| !MAX_AGE.contains(&seconds)) {
        return Err(StepUpError::MaxAge);
    }
    if acr_values.is_empty() && max_age.is_none() {
        return Err(StepUpError::Nothing);
    }
    Ok(step_up)
}

/// Ids that the fleet itself uses, and those that look like its own.
const RESERVED: [&str; 8] =
    ["admin", "flotilla", "operations", "operator", "operators", "platform", "support", "system"];

/// Whether nobody may sign up by this id.
#[must_use]
pub fn is_reserved(slug: &TenantId) -> bool {
    RESERVED.contains(&slug.as_str())
}

impl Tenant {
    /// A new tenant, by this user.
    #[must_use]
    pub fn create(slug: TenantId, draft: TenantDraft, by: UserId, now: DateTime<Utc>) -> Self {
        let TenantDraft { name, time_zone, country, currency, billing_email } = draft;
        let (create_time, update_time) = (now, now);
        Self {
            slug,
            name,
            time_zone,
            country,
            currency,
            billing_email,
            status: TenantStatus::Active,
            step_up: None,
            create_time,
            update_time,
            created_by: by,
            version: 1,
        }
    }

    /// The id of this record: a slug is given once, and so is it.
    #[must_use]
    pub fn record(&self) -> TenantRecordId {
        TenantRecordId::new(Uuid::new_v5(&Uuid::NAMESPACE_OID, self.slug.as_str().as_bytes()))
    }

    /// The tenant with the patch applied; `None` when that changes nothing.
    #[must_use]
    pub fn update(&self, patch: TenantPatch, now: DateTime<Utc>) -> Option<Self> {
        let TenantPatch { name, time_zone, country, currency, billing_email, step_up } = patch;
        let new = Self {
            name: name.unwrap_or_else(|| self.name.clone()),
            time_zone: time_zone.unwrap_or(self.time_zone),
            country: country.unwrap_or_else(|| self.country.clone()),
            currency: currency.unwrap_or_else(|| self.currency.clone()),
            billing_email: billing_email.or_else(|| self.billing_email.clone()),
            step_up: step_up.unwrap_or_else(|| self.step_up.clone()),
            ..self.clone()
        };
        (new != *self).then(|| new.changed(now))
    }

    /// The next version, with this status; also where it has that already, so that the event is published again.
    #[must_use]
    pub fn with_status(&self, status: TenantStatus, now: DateTime<Utc>) -> Self {
        Self { status, ..self.changed(now) }
    }

    /// Whether its name differs from the one `before` and is misleading.
    #[must_use]
    pub fn misleads(&self, before: Option<&Self>) -> bool {
        before.is_none_or(|before| before.name != self.name) && is_misleading(self.name.as_str())
    }

    /// The same, which demands nothing of a sign-in.
    #[must_use]
    pub fn without_step_up(&self, now: DateTime<Utc>) -> Self {
        Self { step_up: None, ..self.changed(now) }
    }

    /// Its last version, with its contents erased.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self {
            name: Name::erased(),
            billing_email: None,
            step_up: None,
            created_by: UserId::erased(),
            ..self.changed(now)
        }
    }

    /// The same without this person; `None` if it does not name the person.
    #[must_use]
    pub fn forget(&self, person: &UserId, now: DateTime<Utc>) -> Option<Self> {
        (self.created_by == *person).then(|| Self { created_by: UserId::erased(), ..self.changed(now) })
    }

    /// The same without this address; `None` if its invoices do not go there.
    #[must_use]
    pub fn without_address(&self, address: &Email, now: DateTime<Utc>) -> Option<Self> {
        (self.billing_email.as_ref() == Some(address)).then(|| Self { billing_email: None, ..self.changed(now) })
    }

    /// Changes with every version.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("v{}", self.version)
    }

    fn changed(&self, now: DateTime<Utc>) -> Self {
        // Time never runs backwards within an aggregate, whatever the clock does.
        Self { version: self.version + 1, update_time: now.max(self.update_time), ..self.clone() }
    }
}
