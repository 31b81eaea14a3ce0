//! Rates that several processes share, in Redis: one bucket of each caller for all of them. While Redis is away, each process holds its callers to
//! the same rates by itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script, TlsCertificates};
use tokio::time::{MissedTickBehavior, timeout};
use tracing::{info, warn};

use crate::lifecycle::Lifecycle;
use crate::reread::Reread;
use crate::secret::Secret;
use crate::tls::Authorities;

/// How long a call waits for Redis: then it goes by this process's own count.
const ANSWERS_WITHIN: Duration = Duration::from_millis(100);
/// How many answers in a row may be late before the connection is given up: a packet that is lost takes longer than one may.
const MOST_LATE: usize = 16;
/// How long a connection, and the answer to a probe, may take.
const CONNECTS_WITHIN: Duration = Duration::from_secs(2);
/// How often a probe checks that Redis answers and still holds its keys.
const PROBES_EVERY: Duration = Duration::from_secs(1);
/// Longer than any caller has to wait until its units are there: a second.
const LONGEST: Duration = Duration::from_millis(1_100);
/// What every key begins with; a login needs no others.
pub const PREFIX: &str = "rates:";
/// The key that a probe spends of.
const PROBE: &str = "rates:probe";
/// Says that Redis has not been emptied.
const MARK: &str = "rates:mark";

/// The generic cell rate algorithm: each key holds the time at which its caller's units will all be there again. By the clock of Redis, so that the
/// processes' clocks do not matter. Of several callers, all are charged or none.
const SPEND: &str = r"
local time = redis.call('TIME')
-- Microseconds since 2026: small enough that fractions of one still count in a double.
local now = (time[1] - 1767225600) * 1000000 + time[2]
local cost, ahead, admitted, answer, full = tonumber(ARGV[1]), tonumber(ARGV[2]), 1, {}, {}
for i, key in ipairs(KEYS) do
  local rate = tonumber(ARGV[i + 2])
  local price = math.min(cost, rate) * 1000000 / rate
  -- Never further away than a second: what is, was written before the clock was set back.
  full[i] = math.min(math.max(tonumber(redis.call('GET', key) or now), now), now + 1000000) + price
  -- A second's units may come at once.
  local wait = full[i] - 1000000 - now
  if wait > 0.5 then admitted = 0 end
  answer[2 * i] = math.ceil(math.max(wait, 0))
  if wait > 0.5 then full[i] = full[i] - price end
  -- Nobody is given units ahead who has less than half left.
  if full[i] + ahead * 1000000 / rate - now > 500000 then ahead = 0 end
end
ahead = ahead * admitted
answer[1] = admitted
for i, key in ipairs(KEYS) do
  local rate = tonumber(ARGV[i + 2])
  full[i] = full[i] + ahead * 1000000 / rate
  if admitted == 1 then
    redis.call('SET', key, string.format('%.17g', full[i]), 'PX', math.ceil((full[i] - now) / 1000) + 1)
  end
  answer[2 * i + 1] = math.max(0, math.floor((1000000 - (full[i] - now)) * rate / 1000000 + 0.000001))
end
answer[2 * #KEYS + 2] = ahead
return answer
";

/// A client of the Redis at this address, whose certificate is one of the authorities in this PEM.
///
/// # Errors
/// The address, or the PEM, cannot be read; the error repeats neither.
pub fn client(url: &str, authorities: Option<&[u8]>) -> Result<Client, anyhow::Error> {
    let url = url.trim();
    let tls = TlsCertificates { client_tls: None, root_cert: authorities.map(<[u8]>::to_vec) };
    let client = if url.starts_with("rediss:") { Client::build_with_tls(url, tls) } else { Client::open(url) };
    client.map_err(|error| anyhow::anyhow!("the address of Redis: {}", error.category()))
}

/// What is left of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whose: `tenant` or `principal`.
    pub scope: &'static str,
    /// Units in a second.
    pub quota: u32,
    /// Of these, so many may be spent at once.
    pub remaining: u32,
}

/// One whose units are spent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spender<'a> {
    /// As in [`Standing`].
    pub scope: &'static str,
    /// Unique among all.
    pub key: &'a str,
    /// Units in a second.
    pub rate: u32,
}

/// What Redis says of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Spent {
    /// It is paid for, and so many units ahead; this is left.
    Paid(Vec<Standing>, u32),
    /// So long until this one may pay: the number in the order in which they were named.
    NotYet(usize, Duration),
    /// Nobody knows.
    Away,
}

/// The buckets.
pub struct SharedRates {
    client: Reread<Client>,
    script: Script,
    /// None while Redis is away.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Whether this process has set or seen the mark.
    marked: AtomicBool,
    /// How many answers in a row have come too late.
    late: AtomicUsize,
}

impl SharedRates {
    /// Shares rates in the Redis at this address (`rediss://user:password@host:port`), connected while the process runs. A login that changes
    /// holds from the next connection on.
    ///
    /// # Errors
    /// The address or the authorities cannot be read.
    pub async fn open(
        (authorities, lifecycle): (&Authorities, &Lifecycle),
        url: &Secret,
    ) -> Result<Arc<Self>, anyhow::Error> {
        let client = authorities
            .reread(lifecycle, url.source(), |url, authorities| client(std::str::from_utf8(url)?, authorities));
        let client = client.context("the Redis that rates are shared in")?;
        metrics::counter!("rates_kept_alone_total").increment(0);
        metrics::counter!("rates_forgotten_total").increment(0);
        let shared = Arc::new(Self {
            client,
            script: Script::new(SPEND),
            connection: Mutex::default(),
            marked: AtomicBool::new(false),
            late: AtomicUsize::new(0),
        });
        // The first call finds it connected, unless Redis is away.
        let mut was = shared.report(None).await;
        let keeps = Arc::clone(&shared);
        lifecycle.run("shared rates", |stop| async move {
            let mut tick = tokio::time::interval(PROBES_EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                was = keeps.report(was).await;
            }
        });
        Ok(shared)
    }

    /// Probes, and logs a change.
    async fn report(&self, was: Option<bool>) -> Option<bool> {
        let is = self.probe().await;
        metrics::gauge!("rates_shared").set(if is.is_ok() { 1.0 } else { 0.0 });
        match &is {
            Ok(()) if was != Some(true) => info!("rates are shared with the other processes"),
            Err(error) if was != Some(false) => warn!(%error, "Redis is away: this process keeps rates by itself"),
            _ => {}
        }
        Some(is.is_ok())
    }

    /// Connects where there is no connection, runs the script once, and checks that the mark is still there.
    async fn probe(&self) -> Result<(), redis::RedisError> {
        let mut connection = match self.connection() {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_response_timeout(Some(CONNECTS_WITHIN))
                    .set_connection_timeout(Some(CONNECTS_WITHIN));
                let client = self.client.get();
                client.get_multiplexed_async_connection_with_config(&config).await?
            }
        };
        let probed = async {
            // What calls ask of it: a login that may do less, and a server that runs no script, are no Redis to share in.
            let mut probe = self.script.prepare_invoke();
            probe.key(PROBE).arg(1).arg(0).arg(1_000_000);
            probe.invoke_async::<Vec<i64>>(&mut connection).await?;
            redis::cmd("SET").arg(MARK).arg(1).arg("NX").query_async::<Option<String>>(&mut connection).await
        };
        match probed.await {
            Ok(set) => {
                if self.marked.swap(true, Ordering::Relaxed) && set.is_some() {
                    warn!(
                        "Redis has been emptied: shared rates begin anew, and each process goes on with its own count"
                    );
                    metrics::counter!("rates_forgotten_total").increment(1);
                }
                self.late.store(0, Ordering::Relaxed);
                *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
                Ok(())
            }
            Err(error) => {
                self.lose();
                Err(error)
            }
        }
    }

    fn connection(&self) -> Option<MultiplexedConnection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether there was a connection.
    fn lose(&self) -> bool {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Spends so many units of all of these, or of none; and so many ahead, where all have more than half left.
    pub(crate) async fn spend(&self, (cost, ahead): (u32, u32), of: &[Spender<'_>]) -> Spent {
        let Some(mut connection) = self.connection() else { return away() };
        let mut call = self.script.prepare_invoke();
        call.arg(cost).arg(ahead);
        for Spender { key, rate, .. } in of {
            call.key(format!("{PREFIX}{key}")).arg(rate);
        }
        // All of it, also where the script has to be sent first.
        match timeout(ANSWERS_WITHIN, call.invoke_async::<Vec<i64>>(&mut connection)).await {
            Ok(Ok(answer)) => {
                self.late.store(0, Ordering::Relaxed);
                read(&answer, of).unwrap_or_else(away)
            }
            // One answer that is late says little; many, that nobody should wait for more.
            broken_or_late => {
                let broken = broken_or_late.is_ok() || self.late.fetch_add(1, Ordering::Relaxed) >= MOST_LATE;
                if broken && self.lose() {
                    warn!("Redis does not answer: this process keeps rates by itself");
                    metrics::gauge!("rates_shared").set(0.0);
                }
                away()
            }
        }
    }
}

fn away() -> Spent {
    metrics::counter!("rates_kept_alone_total").increment(1);
    Spent::Away
}

/// The script's answer: whether all have paid; of each how many microseconds it has to wait, and how many units are left; and how many were paid ahead.
fn read(answer: &[i64], of: &[Spender<'_>]) -> Option<Spent> {
    let (admitted, each) = answer.split_first()?;
    let number = |at: usize| each.get(at).and_then(|number| u64::try_from(*number).ok());
    if *admitted == 1 {
        let standing = |(at, spender): (usize, &Spender<'_>)| {
            let remaining = u32::try_from(number(2 * at + 1)?).ok()?;
            Some(Standing { scope: spender.scope, quota: spender.rate, remaining })
        };
        let ahead = u32::try_from(number(2 * of.len())?).ok()?;
        return Some(Spent::Paid(of.iter().enumerate().map(standing).collect::<Option<_>>()?, ahead));
    }
    let waits = (0..of.len()).filter_map(|at| Some((at, Duration::from_micros(number(2 * at)?))));
    let (at, wait) = waits.max_by_key(|(_, wait)| *wait)?;
    // No true answer makes a caller wait for longer than it takes to have all units again, nor not at all.
    (!wait.is_zero() && wait <= LONGEST).then_some(Spent::NotYet(at, wait))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::num::NonZeroU32;
    use std::sync::atomic::AtomicU32;

    use devstack::redis::Redis;
    use devstack::{StackDir, install};
    use futures::future::join_all;
    use testkit::{unique, until};
    use tokio::time::Instant;

    use super::*;
    use crate::limits::tests::who;
    use crate::limits::{Allowance, Allowances, Limits};

    /// A Redis of the test's own.
    struct Running {
        home: StackDir,
        url: String,
        process: tokio::process::Child,
    }

    impl Running {
        async fn start() -> Option<Self> {
            let Some(program) = install::redis(&(Arc::new(|_: &str| ()) as _)).await.unwrap() else {
                // Not by a macro, whose output of a test that passes nobody sees.
                let what = "SKIPPED: no rates are shared: this machine has no Redis (apt-get install redis-server)";
                writeln!(std::io::stderr(), "{what}").unwrap();
                return None;
            };
            let home = StackDir::open(&std::env::temp_dir().join(unique("flotilla-rates-"))).unwrap();
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let redis = Redis::prepare(&home, &program, port, None).unwrap();
            let process = redis.program().spawn().unwrap();
            until("Redis listens", || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() })
                .await;
            Some(Self { home, url: redis.url(port), process })
        }

        async fn shared(&self, lifecycle: &Lifecycle) -> Arc<SharedRates> {
            let url = Secret::from(self.url.clone());
            SharedRates::open((&Authorities::default(), lifecycle), &url).await.unwrap()
        }

        async fn stop(mut self, lifecycle: &Lifecycle) {
            lifecycle.shut_down().await;
            self.process.kill().await.unwrap();
            self.home.wipe().unwrap();
        }
    }

    /// Rates are so low that no time that passes meanwhile matters.
    #[tokio::test]
    async fn all_pay_or_none_and_no_more_than_there_is() {
        let Some(redis) = Running::start().await else { return };
        let lifecycle = Lifecycle::default();
        let shared = redis.shared(&lifecycle).await;
        let spend = async |units, of: &[(&str, u32)]| {
            let of: Vec<_> = of.iter().map(|(key, rate)| Spender { scope: "principal", key, rate: *rate }).collect();
            match shared.spend(units, &of).await {
                Spent::Paid(left, ahead) => Ok((left.iter().map(|left| left.remaining).collect::<Vec<_>>(), ahead)),
                Spent::NotYet(whose, wait) => Err((whose, wait <= LONGEST)),
                Spent::Away => panic!("Redis is away"),
            }
        };
        // What was written before the clock was set back holds for a second at most; until then, nobody pays or is charged.
        let mut other = Client::open(redis.url.as_str()).unwrap().get_multiplexed_async_connection().await.unwrap();
        redis::cmd("SET").arg("rates:{a}").arg("1e15").query_async::<()>(&mut other).await.unwrap();
        assert_eq!(spend((1, 0), &[("{a}/ann", 1), ("{a}", 1)]).await, Err((1, true)));
        assert_eq!(spend((1, 0), &[("{a}/ann", 1)]).await, Ok((vec![0], 0)), "she was not charged");
        assert_eq!(spend((1, 0), &[("{b}/ann", 1), ("{b}", 60)]).await, Ok((vec![0, 59], 0)));
        // More than there ever is costs all of it.
        assert_eq!(spend((500, 0), &[("{c}", 2)]).await, Ok((vec![0], 0)));
        // Ahead is paid by all, as long as all have half left.
        assert_eq!(spend((1, 3), &[("{d}/ann", 10), ("{d}", 20)]).await, Ok((vec![6, 16], 3)));
        assert_eq!(spend((1, 3), &[("{d}/ann", 10), ("{d}", 20)]).await, Ok((vec![5, 15], 0)));
        redis.stop(&lifecycle).await;
    }

    #[tokio::test]
    async fn units_in_hand_let_in_no_more_and_spare_most_questions() {
        const RATE: u32 = 2_000;
        let Some(redis) = Running::start().await else { return };
        let lifecycle = Lifecycle::default();
        let rate = NonZeroU32::new(RATE).unwrap();
        let allowance = Allowance { rate, at_work: 4, streams: 1 };
        let tenant = Allowance { rate: rate.saturating_add(1), ..allowance };
        let allowances = Allowances { tenant, principal: allowance, streams: 1, at_work: 100 };
        let limits = [
            Limits::new(&allowances, Some(redis.shared(&lifecycle).await)),
            Limits::new(&allowances, Some(redis.shared(&lifecycle).await)),
        ];
        let administration = std::fs::read_to_string(redis.home.path("secrets/redis-administration-url")).unwrap();
        let mut other = Client::open(administration).unwrap().get_multiplexed_async_connection().await.unwrap();
        let who = who("acme", "ann");
        let (admitted, began) = (AtomicU32::new(0), Instant::now());
        // From two processes, as fast as each is let in, until so many were.
        let until_admitted = async |goal: u32| {
            let calls = (0..8).map(async |client: usize| {
                while admitted.load(Ordering::SeqCst) < goal {
                    if limits[client % 2].turn(&who, NonZeroU32::MIN).await.is_ok() {
                        admitted.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            join_all(calls).await;
        };
        // What is there, by calls that wait for nothing.
        until_admitted(RATE / 4).await;
        let said: String = redis::cmd("INFO").arg("commandstats").query_async(&mut other).await.unwrap();
        let calls = said.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
        let questions: u32 = calls.split(',').next().unwrap().parse().unwrap();
        assert!(questions < admitted.load(Ordering::SeqCst) / 2, "{questions}");
        // And more than there are.
        until_admitted(3 * RATE).await;
        let most = f64::from(RATE) * (1.0 + began.elapsed().as_secs_f64());
        let admitted = admitted.load(Ordering::SeqCst);
        assert!(f64::from(admitted) <= most + 1.0, "{admitted} of {most}");
        redis.stop(&lifecycle).await;
    }
}
