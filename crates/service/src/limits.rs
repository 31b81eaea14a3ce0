//! How much one tenant, and one principal, may have of a process: so many calls at work, and so many units of cost in a
//! second. Asked before a call takes a connection to a database. A call that is beyond it waits for its turn for a second;
//! then it is refused, with the time after which to try again.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use authz::Principal;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use prost_reflect::MethodDescriptor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::{Code, Failure};

/// How long a call waits for its turn.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many calls of one tenant, or principal, may wait for each that may be at work.
const WAITING: usize = 16;
/// Above so many callers those with nothing at work are forgotten.
const CALLERS: usize = 10_000;

/// What one tenant, or one principal, may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Units of cost in a second (`flotilla.edge.v1.policy`); as many may come at once after a rest.
    pub rate: NonZeroU32,
    /// Calls at work.
    pub at_work: usize,
}

/// What each tenant and each principal may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowances {
    /// All of a tenant together.
    pub tenant: Allowance,
    /// One principal of it.
    pub principal: Allowance,
}

/// The cost of a call of this method, by its option `flotilla.edge.v1.policy`.
#[must_use]
pub fn cost(method: &MethodDescriptor) -> NonZeroU32 {
    let cost = || {
        let policy = method.parent_pool().get_extension_by_name("flotilla.edge.v1.policy")?;
        method.options().get_extension(&policy).as_message()?.get_field_by_name("cost")?.as_u32()
    };
    cost().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}

/// Who has how much of this process just now.
pub struct Limits {
    tenants: Callers,
    principals: Callers,
}

impl Limits {
    /// Nobody has anything.
    #[must_use]
    pub fn new(allowances: &Allowances) -> Self {
        Self {
            tenants: Callers::new("tenant", allowances.tenant),
            principals: Callers::new("principal", allowances.principal),
        }
    }

    /// Lets a caller's request in: to be read, and to wait for its turn.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when too many wait already.
    pub fn enter(&self, who: &Principal) -> Result<Place<'_>, Failure> {
        let principal = format!("{}/{}", who.tenant.as_str(), who.user.as_str());
        Ok(Place {
            principal: self.principals.enter(principal)?,
            tenant: self.tenants.enter(who.tenant.as_str().to_owned())?,
        })
    }
}

/// A request that is let in, until this is dropped.
pub struct Place<'a> {
    tenant: Entered<'a>,
    principal: Entered<'a>,
}

impl Place<'_> {
    /// Waits until the request may be worked on.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when that is not within a second.
    pub async fn turn(&self, cost: NonZeroU32) -> Result<Turn, Failure> {
        let until = Instant::now() + PATIENCE;
        // In line first: of many that are beyond the rate, few ask again and again.
        let at_work = [self.principal.at_work(until).await?, self.tenant.at_work(until).await?];
        self.principal.spend(cost, until).await?;
        self.tenant.spend(cost, until).await?;
        Ok(Turn(at_work))
    }
}

/// A request at work, until this is dropped.
pub struct Turn(#[expect(dead_code, reason = "held")] [OwnedSemaphorePermit; 2]);

struct Callers {
    scope: &'static str,
    allowance: Allowance,
    rates: DefaultKeyedRateLimiter<String>,
    known: Mutex<HashMap<String, Arc<Caller>>>,
}

/// The places of one tenant, or principal.
struct Caller {
    inside: Arc<Semaphore>,
    at_work: Arc<Semaphore>,
}

impl Callers {
    fn new(scope: &'static str, allowance: Allowance) -> Self {
        for why in ["waiting", "at work", "rate"] {
            metrics::counter!("calls_refused_total", "scope" => scope, "why" => why).increment(0);
        }
        let rates = RateLimiter::keyed(Quota::per_second(allowance.rate));
        Self { scope, allowance, rates, known: Mutex::default() }
    }

    fn enter(&self, key: String) -> Result<Entered<'_>, Failure> {
        let caller = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= CALLERS && !known.contains_key(&key) {
                known.retain(|_, caller| Arc::strong_count(caller) > 1);
                self.rates.retain_recent();
            }
            Arc::clone(known.entry(key.clone()).or_insert_with(|| {
                let at_work = self.allowance.at_work;
                let inside = Arc::new(Semaphore::new(at_work * (1 + WAITING)));
                Arc::new(Caller { inside, at_work: Arc::new(Semaphore::new(at_work)) })
            }))
        };
        let inside = Arc::clone(&caller.inside).try_acquire_owned();
        let inside = inside.map_err(|_| self.refused("waiting", Duration::ZERO))?;
        Ok(Entered { callers: self, key, caller, _inside: inside })
    }

    fn refused(&self, why: &'static str, wait: Duration) -> Failure {
        metrics::counter!("calls_refused_total", "scope" => self.scope, "why" => why).increment(1);
        let Allowance { rate, at_work } = self.allowance;
        let what = match why {
            "rate" => format!("may spend {rate} units a second (flotilla.edge.v1.policy says what a call costs)"),
            _ => format!("may have {at_work} calls at work at once"),
        };
        let message = format!("a {} {what}: wait, and send less at once", self.scope);
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Failure::new(Code::ResourceExhausted, "TOO_MANY_REQUESTS", message)
            .retry_after(Duration::from_secs(seconds.max(1)))
    }
}

struct Entered<'a> {
    callers: &'a Callers,
    key: String,
    caller: Arc<Caller>,
    _inside: OwnedSemaphorePermit,
}

impl Entered<'_> {
    async fn at_work(&self, until: Instant) -> Result<OwnedSemaphorePermit, Failure> {
        let permit = tokio::time::timeout_at(until, Arc::clone(&self.caller.at_work).acquire_owned()).await;
        permit.ok().and_then(Result::ok).ok_or_else(|| self.callers.refused("at work", Duration::ZERO))
    }

    async fn spend(&self, cost: NonZeroU32, until: Instant) -> Result<(), Failure> {
        // What costs more than a second's units could never be paid.
        let cost = cost.min(self.callers.allowance.rate);
        loop {
            let Ok(Err(not_yet)) = self.callers.rates.check_key_n(&self.key, cost) else { return Ok(()) };
            let wait = not_yet.wait_time_from(DefaultClock::default().now());
            if Instant::now() + wait > until {
                return Err(self.callers.refused("rate", wait));
            }
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowances(rate: u32, at_work: usize) -> Allowances {
        let allowance = Allowance { rate: NonZeroU32::new(rate).unwrap(), at_work };
        let tenant = Allowance { rate: NonZeroU32::new(rate * 2).unwrap(), at_work: at_work * 2 };
        Allowances { tenant, principal: allowance }
    }

    fn who(tenant: &str, user: &str) -> Principal {
        Principal { tenant: tenant.parse().unwrap(), user: user.parse().unwrap() }
    }

    async fn spend(limits: &Limits, who: &Principal, cost: u32) -> Result<(), (&'static str, Option<Duration>)> {
        let turn = async { limits.enter(who)?.turn(NonZeroU32::new(cost).unwrap()).await.map(drop) };
        turn.await.map_err(|refused: Failure| (refused.reason, refused.retry_after))
    }

    const REFUSED: Result<(), (&str, Option<Duration>)> = Err(("TOO_MANY_REQUESTS", Some(Duration::from_secs(1))));

    // Time stands still for the rates, and passes at once for those who wait.
    #[tokio::test(start_paused = true)]
    async fn a_rate_is_a_principals_and_that_of_a_tenant_is_all_of_theirs_together() {
        let limits = Limits::new(&allowances(10, 9));
        let (ann, bob, cid) = (who("acme", "ann"), who("acme", "bob"), who("acme", "cid"));
        assert_eq!(spend(&limits, &ann, 7).await, Ok(()));
        assert_eq!(spend(&limits, &ann, 7).await, REFUSED, "she has spent hers");
        assert_eq!(spend(&limits, &bob, 7).await, Ok(()), "bob has not");
        assert_eq!(spend(&limits, &cid, 7).await, REFUSED, "the tenant has");
        assert_eq!(spend(&limits, &who("globex", "ann"), 7).await, Ok(()), "another one is another one");
        assert_eq!(spend(&limits, &who("dear", "eve"), 1_000).await, Ok(()), "what costs more than there ever is");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_at_work_some_wait_and_others_are_refused() {
        let limits = Limits::new(&allowances(1_000, 1));
        let (ann, bob, one) = (who("acme", "ann"), who("acme", "bob"), NonZeroU32::MIN);
        let place = limits.enter(&ann).unwrap();
        let turn = place.turn(one).await.unwrap();
        assert_eq!(spend(&limits, &ann, 1).await, REFUSED);
        assert_eq!(spend(&limits, &bob, 1).await, Ok(()));
        // Whoever waits is next.
        let later = limits.enter(&ann).unwrap();
        let ((), next) = futures::join!(async { drop(turn) }, later.turn(one));
        assert!(next.is_ok());
        drop((place, later, next));
        let inside: Vec<_> = (0..=WAITING).map(|_| limits.enter(&ann).unwrap()).collect();
        assert_eq!(limits.enter(&ann).err().map(|refused| refused.reason), Some("TOO_MANY_REQUESTS"));
        drop(inside);
        assert!(limits.enter(&ann).is_ok());
    }
}
