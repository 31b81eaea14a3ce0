//! Admission limits of one tenant, and of one principal, in a process: concurrent calls, and units of cost in a second. They apply before a
//! call takes a connection to a database. A call beyond them waits a second for its turn. Then it is refused, with the time after which to
//! retry. A stream is at work until its answer begins, and counts among the open streams from then on. Where rates are shared, this process's own
//! count comes first, and holds alone while Redis is away, or has forgotten.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use crate::reserve::Reserve;
use crate::shared_rates::{SharedRates, Spender, Spent, Standing};
use crate::shedding::{PATIENCE, Place, Places};
use crate::{Code, Failure};

/// How many calls of one tenant, or principal, may wait for each that may be at work.
const WAITING: usize = 16;
/// How many further calls wait before they are refused, so that a caller that retries at once does so once a second.
const HELD_BACK: usize = 4_096;
/// In the metadata of a refusal: whose rate is spent, and how many units it has in a second.
pub const SCOPE: &str = "scope";
/// See [`SCOPE`].
pub const QUOTA: &str = "quota";
/// Above this many callers, idle ones are forgotten.
const CALLERS: usize = 10_000;

/// The limits of one tenant, or one principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Units of cost in a second (`flotilla.edge.v1.policy`); as many may come at once after an idle time.
    pub rate: NonZeroU32,
    /// Calls at work.
    pub at_work: usize,
    /// Open streams.
    pub streams: usize,
}

/// The limits of each tenant and each principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowances {
    /// All of a tenant together.
    pub tenant: Allowance,
    /// One principal of it.
    pub principal: Allowance,
    /// Open streams of all callers together.
    pub streams: usize,
    /// Calls of all callers together that are at work.
    pub at_work: usize,
}

/// The current use of this process, by caller.
pub struct Limits {
    tenants: Callers,
    principals: Callers,
    /// The open streams of all.
    streams: Arc<Semaphore>,
    held_back: Semaphore,
    places: Arc<Places>,
    shared: Option<Arc<SharedRates>>,
}

impl Limits {
    /// No caller uses anything. Rates are this process's, or those of all processes that share them.
    #[must_use]
    pub fn new(allowances: &Allowances, shared: Option<Arc<SharedRates>>) -> Self {
        Self {
            tenants: Callers::new("tenant", allowances.tenant),
            principals: Callers::new("principal", allowances.principal),
            streams: Arc::new(Semaphore::new(allowances.streams)),
            held_back: Semaphore::new(HELD_BACK),
            places: Places::new(allowances.at_work),
            shared,
        }
    }

    /// Waits until a call may run: first within its principal's limits, then within its tenant's.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when the limits do not admit it within a second.
    pub async fn turn(&self, who: &authz::Caller, cost: NonZeroU32) -> Result<Turn, Failure> {
        let until = Instant::now() + PATIENCE;
        let principal = principal(who);
        let (principals, tenants) = (&self.principals, &self.tenants);
        let (principal, tenant) = match (principals.enter(principal), tenants.enter(tenant(who))) {
            (Ok(principal), Ok(tenant)) => (principal, tenant),
            (Err(refused), _) | (_, Err(refused)) => return Err(self.hold_back(refused).await),
        };
        let of_principal = principals.slot(&principal.caller, until).await?;
        let standing = principals.pay(&principal, cost, until).await?;
        let mut of_tenant = tenants.slot(&tenant.caller, until).await?;
        let mut standing = vec![standing, tenants.pay(&tenant, cost, until).await?];
        let both = [(principals, principal.key.as_str()), (tenants, tenant.key.as_str())];
        let reserve = &principal.caller.reserve;
        while let Some(wait) = self.share((&both, reserve), cost, until, &mut standing).await? {
            // Others of the tenant call meanwhile.
            drop(of_tenant);
            sleep(wait).await;
            of_tenant = tenants.slot(&tenant.caller, until).await?;
        }
        let place = Some(self.places.take(&tenant.key, until).await?);
        Ok(Turn { held: vec![of_principal, of_tenant, principal.inside, tenant.inside], standing, place })
    }

    /// The same for a call that names no caller: its address is its principal, of no tenant. Addresses of version 6 count by their first
    /// 64 bits, which one client may have whole.
    ///
    /// # Errors
    /// As [`Limits::turn`].
    pub async fn turn_of_address(&self, address: IpAddr, cost: NonZeroU32) -> Result<Turn, Failure> {
        let until = Instant::now() + PATIENCE;
        let principal = match self.principals.enter(network(address)) {
            Ok(principal) => principal,
            Err(refused) => return Err(self.hold_back(refused).await),
        };
        let at_work = self.principals.slot(&principal.caller, until).await?;
        let mut standing = vec![self.principals.pay(&principal, cost, until).await?];
        let one = [(&self.principals, principal.key.as_str())];
        let reserve = &principal.caller.reserve;
        while let Some(wait) = self.share((&one, reserve), cost, until, &mut standing).await? {
            sleep(wait).await;
        }
        let place = Some(self.places.take(&principal.key, until).await?);
        Ok(Turn { held: vec![at_work, principal.inside], standing, place })
    }

    /// Spends of the shared rates of all of these, or of none; returns how long until they can be spent, if that is within `until`.
    async fn share(
        &self,
        (of, reserve): (&[(&Callers, &str)], &Reserve),
        cost: NonZeroU32,
        until: Instant,
        standing: &mut Vec<Standing>,
    ) -> Result<Option<Duration>, Failure> {
        let Some(shared) = &self.shared else { return Ok(None) };
        if let Some(left) = reserve.pay(cost.get()) {
            *standing = left;
            return Ok(None);
        }
        let spenders = of.iter().map(|&(callers, key)| {
            let rate = callers.allowance.rate.get();
            Spender { scope: callers.scope, key, rate }
        });
        let spenders: Vec<_> = spenders.collect();
        let question = reserve.ask(cost.get(), spenders.iter().map(|spender| spender.rate));
        match shared.spend((cost.get(), question.ahead), &spenders).await {
            Spent::Paid(left, ahead) => {
                *standing = question.given(ahead, left);
                Ok(None)
            }
            Spent::Away => Ok(None),
            Spent::NotYet(_, wait) if Instant::now() + wait <= until => Ok(Some(wait)),
            Spent::NotYet(whose, wait) => {
                let refused = of.get(whose).map(|(callers, _)| callers.refused("rate", wait));
                Err(refused.unwrap_or_else(|| Failure::internal(anyhow::anyhow!("nobody's rate is spent"))))
            }
        }
    }

    /// Counts a stream of this caller among the open ones, until it is dropped.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED where its principal or its tenant has as many as it may; UNAVAILABLE where all together have.
    pub fn stream(&self, who: &authz::Caller) -> Result<Turn, Failure> {
        let of_principal = self.principals.stream(&principal(who))?;
        let of_tenant = self.tenants.stream(&tenant(who))?;
        Ok(Turn { held: vec![of_principal, of_tenant, self.any_stream()?], standing: Vec::new(), place: None })
    }

    /// The same for a call that names no caller.
    ///
    /// # Errors
    /// As [`Limits::stream`].
    pub fn stream_of_address(&self, address: IpAddr) -> Result<Turn, Failure> {
        let held = vec![self.principals.stream(&network(address))?, self.any_stream()?];
        Ok(Turn { held, standing: Vec::new(), place: None })
    }

    fn any_stream(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            metrics::counter!("calls_refused_total", "scope" => "process", "why" => "streams").increment(1);
            let what = "there are as many streams open here as there may be: try again";
            Failure::new(Code::Unavailable, "UNAVAILABLE", what).retry_after(PATIENCE)
        })
    }

    /// Returns what is refused a second later.
    async fn hold_back(&self, refused: Failure) -> Failure {
        if let Ok(_held) = self.held_back.try_acquire() {
            sleep(PATIENCE).await;
        }
        refused
    }
}

/// No two callers have one key: no tenant holds a brace or a slash.
fn tenant(who: &authz::Caller) -> String {
    format!("{{{}}}", who.tenant)
}

fn principal(who: &authz::Caller) -> String {
    format!("{{{}}}/{}", who.tenant, who.key())
}

/// The principal of those who name none.
fn network(address: IpAddr) -> String {
    let network = match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 64 << 64)),
        four @ IpAddr::V4(_) => four,
    };
    // No tenant's name holds a colon.
    format!("address:{network}")
}

/// A call at work, or an open stream, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    #[expect(dead_code, reason = "held")]
    held: Vec<OwnedSemaphorePermit>,
    /// What is left of the rates that it was paid of.
    pub standing: Vec<Standing>,
    #[expect(dead_code, reason = "held")]
    place: Option<Place>,
}

/// tokio's clock, which tests may set.
#[derive(Clone)]
struct Steady;

impl Clock for Steady {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

struct Callers {
    scope: &'static str,
    allowance: Allowance,
    rates: RateLimiter<String, DashMapStateStore<String>, Steady, StateInformationMiddleware>,
    known: Mutex<HashMap<String, Arc<Caller>>>,
}

/// The slots of one tenant, or principal.
struct Caller {
    inside: Arc<Semaphore>,
    at_work: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Of its shared rates.
    reserve: Reserve,
    /// Held by the next call to spend: otherwise cheap calls overtake expensive ones.
    next: tokio::sync::Mutex<()>,
}

impl Caller {
    fn new(Allowance { at_work, streams, .. }: Allowance) -> Self {
        Self {
            inside: Arc::new(Semaphore::new(at_work * (1 + WAITING))),
            at_work: Arc::new(Semaphore::new(at_work)),
            streams: Arc::new(Semaphore::new(streams)),
            reserve: Reserve::default(),
            next: tokio::sync::Mutex::default(),
        }
    }
}

impl Callers {
    fn new(scope: &'static str, allowance: Allowance) -> Self {
        for why in ["waiting", "at work", "rate", "streams"] {
            metrics::counter!("calls_refused_total", "scope" => scope, "why" => why).increment(0);
        }
        let rates = RateLimiter::new(Quota::per_second(allowance.rate), DashMapStateStore::default(), Steady);
        Self { scope, allowance, rates, known: Mutex::default() }
    }

    fn known(&self, key: &str) -> Arc<Caller> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CALLERS && !known.contains_key(key) {
            // One whose slots somebody holds counts on.
            known.retain(|_, caller| Arc::strong_count(caller) > 1 || Arc::strong_count(&caller.streams) > 1);
            self.rates.retain_recent();
        }
        match known.get(key) {
            Some(caller) => Arc::clone(caller),
            None => {
                let caller = Arc::new(Caller::new(self.allowance));
                known.insert(key.to_owned(), Arc::clone(&caller));
                caller
            }
        }
    }

    fn stream(&self, key: &str) -> Result<OwnedSemaphorePermit, Failure> {
        let open = Arc::clone(&self.known(key).streams).try_acquire_owned();
        open.map_err(|_| self.refused("streams", Duration::ZERO))
    }

    fn enter(&self, key: String) -> Result<Entered, Failure> {
        let caller = self.known(&key);
        let inside = Arc::clone(&caller.inside).try_acquire_owned();
        let inside = inside.map_err(|_| self.refused("waiting", Duration::ZERO))?;
        Ok(Entered { key, caller, inside })
    }

    /// A slot at work.
    async fn slot(&self, caller: &Caller, until: Instant) -> Result<OwnedSemaphorePermit, Failure> {
        let at_work = timeout_at(until, Arc::clone(&caller.at_work).acquire_owned()).await;
        at_work.ok().and_then(Result::ok).ok_or_else(|| self.refused("at work", Duration::ZERO))
    }

    /// Pays the cost by this process's count; returns what is left.
    async fn pay(&self, entered: &Entered, cost: NonZeroU32, until: Instant) -> Result<Standing, Failure> {
        let Entered { key, caller, .. } = entered;
        // A cost above a second's units could never be paid.
        let cost = cost.min(self.allowance.rate);
        let _next = timeout_at(until, caller.next.lock()).await.map_err(|_| self.refused("rate", PATIENCE))?;
        loop {
            let wait = match self.rates.check_key_n(key, cost) {
                Ok(Ok(state)) => {
                    let remaining = state.remaining_burst_capacity();
                    return Ok(Standing { scope: self.scope, quota: self.allowance.rate.get(), remaining });
                }
                Ok(Err(not_yet)) => not_yet.wait_time_from(Steady.now()),
                // No cost is above it.
                Err(_) => PATIENCE,
            };
            if Instant::now() + wait > until {
                return Err(self.refused("rate", wait));
            }
            sleep(wait).await;
        }
    }

    fn refused(&self, why: &'static str, wait: Duration) -> Failure {
        metrics::counter!("calls_refused_total", "scope" => self.scope, "why" => why).increment(1);
        let Allowance { rate, at_work, streams } = self.allowance;
        let what = match why {
            "streams" => format!("may have {streams} streams open at once"),
            "rate" => format!("may spend {rate} units a second (flotilla.edge.v1.policy says what a call costs)"),
            _ => format!("may have {at_work} calls at work at once"),
        };
        let then = if why == "streams" { "end one, or share one" } else { "wait, and send less at once" };
        let message = format!("a {} {what}: {then}", self.scope);
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let mut failure = Failure::new(Code::ResourceExhausted, "TOO_MANY_REQUESTS", message)
            .retry_after(Duration::from_secs(seconds.max(1)));
        if why == "rate" {
            failure.metadata = vec![(SCOPE, self.scope.to_owned()), (QUOTA, rate.to_string())];
        }
        failure
    }
}

struct Entered {
    key: String,
    caller: Arc<Caller>,
    inside: OwnedSemaphorePermit,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn allowances(rate: u32, at_work: usize) -> Allowances {
        let allowance = Allowance { rate: NonZeroU32::new(rate).unwrap(), at_work, streams: at_work };
        let tenant = Allowance { rate: NonZeroU32::new(rate * 2).unwrap(), at_work: at_work * 2, streams: at_work * 2 };
        Allowances { tenant, principal: allowance, streams: at_work * 3, at_work: 1_000 }
    }

    pub fn who(tenant: &str, user: &str) -> authz::Caller {
        let actor = format!("user:{user}").parse().unwrap();
        authz::Caller {
            tenant: tenant.parse().unwrap(),
            actor,
            role: None,
            scopes: None,
            sign_in: None,
            issued: None,
            expires_unix_seconds: 0,
        }
    }

    async fn call(limits: &Limits, who: &authz::Caller, cost: u32) -> Result<Turn, (&'static str, Option<Duration>)> {
        let turn = limits.turn(who, NonZeroU32::new(cost).unwrap()).await;
        turn.map_err(|refused: Failure| (refused.reason, refused.retry_after))
    }

    const REFUSED: (&str, Option<Duration>) = ("TOO_MANY_REQUESTS", Some(Duration::from_secs(1)));

    #[tokio::test(start_paused = true)]
    async fn whoever_is_nobody_yet_is_bounded_by_the_address() {
        let limits = Limits::new(&allowances(10, 9), None);
        let turn = async |address: &str, cost: u32| {
            let began = Instant::now();
            let turn = limits.turn_of_address(address.parse().unwrap(), NonZeroU32::new(cost).unwrap()).await;
            turn.map(|_| began.elapsed().as_millis()).map_err(|refused: Failure| refused.reason)
        };
        for (address, cost, millis) in [
            ("192.0.2.1", 10, 0..=10),
            ("192.0.2.2", 10, 0..=10),
            // The same as a client of version 6 has it; and one network of version 6 is one client.
            ("::ffff:192.0.2.1", 5, 490..=510),
            ("2001:db8::1", 10, 0..=10),
            ("2001:db8::2:1", 5, 490..=510),
            ("2001:db8:0:1::1", 10, 0..=10),
        ] {
            let waited = turn(address, cost).await.unwrap();
            assert!(millis.contains(&waited), "{address}: after {waited} ms");
        }
        let guesses = futures::future::join_all((0..9).map(|_| turn("192.0.2.7", 10))).await;
        assert_eq!(guesses.iter().filter(|guess| guess.is_ok()).count(), 2, "{guesses:?}");
        assert!(guesses.into_iter().filter_map(Result::err).all(|reason| reason == "TOO_MANY_REQUESTS"));
        assert!(turn("192.0.2.8", 10).await.is_ok(), "another address has its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_a_principals_and_that_of_a_tenant_is_all_of_theirs_together() {
        let limits = Limits::new(&allowances(10, 9), None);
        let (ann, bob, cid) = (who("acme", "ann"), who("acme", "bob"), who("acme", "cid"));
        let began = Instant::now();
        for (who, cost, millis) in [
            (&ann, 10, 0..=10),
            // She waits for hers to come again; bob has his own; the tenant's 20 are spent by then, and come again.
            (&ann, 5, 490..=510),
            (&bob, 10, 490..=510),
            (&cid, 10, 740..=760),
            (&who("globex", "ann"), 10, 740..=760),
            // More than there ever is at once costs all of it.
            (&who("dear", "eve"), 1_000, 740..=760),
        ] {
            call(&limits, who, cost).await.unwrap();
            let at = began.elapsed().as_millis();
            assert!(millis.contains(&at), "{who:?} {cost}: after {at} ms");
        }
        let all = futures::future::join_all((0..9).map(|_| call(&limits, &ann, 5))).await;
        let done = all.iter().filter(|turn| turn.is_ok()).count();
        assert_eq!(done, 2, "{all:?}");
        assert!(all.into_iter().filter_map(Result::err).all(|refused| refused == REFUSED));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cheap_does_not_overtake_what_is_dear() {
        let limits = Limits::new(&allowances(10, 9), None);
        let ann = who("acme", "ann");
        call(&limits, &ann, 10).await.unwrap();
        let cheap = futures::future::join_all((0..3).map(|_| call(&limits, &ann, 1)));
        let (dear, cheap) = futures::join!(call(&limits, &ann, 8), cheap);
        assert!(dear.is_ok());
        assert_eq!(cheap.iter().filter(|turn| turn.is_ok()).count(), 2, "{cheap:?}");
    }

    #[test]
    fn so_many_streams_are_open_of_a_principal_and_of_a_tenant() {
        let limits = Limits::new(&allowances(10, 2), None);
        let (ann, bob, cid) = (who("acme", "ann"), who("acme", "bob"), who("acme", "cid"));
        let open =
            |who: &authz::Caller| limits.stream(who).map_err(|refused: Failure| (refused.reason, refused.retry_after));
        let of_ann = [open(&ann).unwrap(), open(&ann).unwrap()];
        assert_eq!(open(&ann).unwrap_err(), REFUSED);
        let _of_bob = [open(&bob).unwrap(), open(&bob).unwrap()];
        assert_eq!(open(&cid).unwrap_err(), REFUSED, "the tenant's are all open");
        let of_another = who("globex", "ann");
        open(&of_another).unwrap();
        let _another = open(&of_another).unwrap();
        let _last = open(&of_another).unwrap();
        let last = who("initech", "ann");
        assert_eq!(open(&last).unwrap_err().0, "UNAVAILABLE", "all of all callers' are open");
        drop(of_ann);
        open(&cid).unwrap();
        open(&last).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_at_work_some_wait_and_others_are_refused_a_second_later() {
        let limits = Limits::new(&allowances(1_000, 1), None);
        let (ann, bob) = (who("acme", "ann"), who("acme", "bob"));
        let turn = call(&limits, &ann, 1).await.unwrap();
        assert_eq!(call(&limits, &ann, 1).await.unwrap_err(), REFUSED);
        call(&limits, &bob, 1).await.unwrap();
        // The call that waits is next.
        let ((), next) = futures::join!(async { drop(turn) }, call(&limits, &ann, 1));
        let turn = next.unwrap();
        let began = Instant::now();
        let crowd = futures::future::join_all((0..100).map(|_| call(&limits, &ann, 1))).await;
        assert!(crowd.into_iter().all(|turn| turn.unwrap_err() == REFUSED));
        assert_eq!(began.elapsed().as_secs(), 1, "nobody is refused so soon that it asks again at once");
        drop(turn);
        call(&limits, &ann, 1).await.unwrap();
    }
}
