//! Rates that two gateways share, in a Redis of the test's own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use devstack::redis::Redis;
use devstack::{StackDir, install};
use e2e::Answer;
use futures::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use testkit::{unique, until};

use crate::replicas::one_more;
use crate::strangers::skipped;
use crate::with_fleet;

/// What a principal may spend in a second, and its tenant.
const RATES: [usize; 2] = [60, 100];
const MISSING: &str = "/v1/todos/0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f";

async fn metric(ops: &str, name: &str) -> f64 {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let all = http.get(format!("http://{ops}/metrics")).send().await.unwrap().text().await.unwrap();
    let line = all.lines().find(|line| line.starts_with(name)).map(ToOwned::to_owned);
    line.map_or(f64::NAN, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// How long it takes since then until so many more calls are let in, by many clients at once; and who was refused meanwhile.
async fn until_let_in(goal: usize, began: Instant, call: impl AsyncFn(usize) -> Answer) -> (Duration, Vec<Answer>) {
    let (admitted, took) = (AtomicUsize::new(0), OnceLock::new());
    let refused = join_all((0..200).map(async |client| {
        let mut refused = None;
        while admitted.load(Ordering::SeqCst) < goal {
            let answer = call(client).await;
            if answer.status == 429 {
                refused = Some(answer);
                continue;
            }
            assert_eq!(answer.status, 404);
            if admitted.fetch_add(1, Ordering::SeqCst) + 1 == goal {
                took.set(began.elapsed()).unwrap();
            }
        }
        refused
    }));
    let refused = refused.await.into_iter().flatten().collect();
    (took.into_inner().unwrap(), refused)
}

#[test]
fn two_gateways_let_in_no_more_than_one_and_each_goes_on_alone_without_redis() {
    with_fleet(|fleet, _| async {
        let Some(program) = install::redis(&(Arc::new(|_: &str| ()) as _)).await.unwrap() else {
            skipped("no rates are shared: this machine has no Redis (apt-get install redis-server)");
            return;
        };
        let folder = std::env::temp_dir().join(unique("flotilla-rates-"));
        let home = StackDir::open(&folder).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let redis = Redis::prepare(&home, &program, port, None).unwrap();
        let mut running = redis.program().spawn().unwrap();
        let listens = || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() };
        until("Redis listens", listens).await;

        let url = home.write_secret("url", &redis.url(port)).unwrap();
        let (principal, tenant) = (RATES[0].to_string(), RATES[1].to_string());
        let more = [
            ("FLOTILLA_REDIS_URL_FILE", url.to_str().unwrap()),
            ("FLOTILLA_PRINCIPAL_RATE", &principal),
            ("FLOTILLA_TENANT_RATE", &tenant),
        ];
        let (_one, first, ops) = one_more(fleet, "gateway", &more).await;
        let (_other, second, other_ops) = one_more(fleet, "gateway", &more).await;
        let policy = format!("\"principal\";q={principal};w=1, \"tenant\";q={tenant};w=1");
        let alone =
            async || metric(&ops, "rates_kept_alone_total").await + metric(&other_ops, "rates_kept_alone_total").await;
        let mut attempts = 0;
        let (gateways, refused) = loop {
            attempts += 1;
            assert!(attempts <= 5, "Redis answers some call too late each time");
            let ann = fleet.caller(&format!("rates-{attempts}"), "ann").await;
            let gateways = [ann.at(&first), ann.at(&second)];
            let call = async |gateway: usize| gateways[gateway % 2].send(Method::GET, MISSING, None).await;
            // A second's units are there at once, wherever they are spent.
            let (before, began) = (alone().await, Instant::now());
            let burst = join_all((0..RATES[0]).map(call)).await;
            for answer in &burst {
                let said = (answer.status, answer.header("ratelimit-policy"));
                assert_eq!(said, (404, policy.as_str()), "{:?}", answer.body);
                assert!(answer.header("ratelimit").contains("\"principal\";r="), "{}", answer.header("ratelimit"));
            }
            // From then on so many a second, of both together: one that counted alone would let in twice as many.
            let (took, refused) = until_let_in(3 * RATES[0], began, call).await;
            // A call that Redis has answered too late went by its gateway's count: that burst says nothing.
            if alone().await == before {
                assert!(took > Duration::from_millis(2_950), "{took:?}");
                break (gateways, refused);
            }
        };
        let call = async |gateway: usize| gateways[gateway % 2].send(Method::GET, MISSING, None).await;
        let for_their_rate: Vec<_> = refused.iter().filter(|answer| !answer.header("ratelimit").is_empty()).collect();
        assert!(!for_their_rate.is_empty());
        for answer in for_their_rate {
            assert_eq!(answer.code(), "TOO_MANY_REQUESTS");
            let left = format!("\"principal\";r=0;t={}", answer.header("retry-after"));
            assert_eq!(answer.header("ratelimit"), left);
            assert_eq!(answer.header("ratelimit-policy"), format!("\"principal\";q={principal};w=1"));
        }
        assert_eq!((metric(&ops, "rates_shared").await, metric(&ops, "rates_forgotten_total").await), (1.0, 0.0));

        // Redis says nothing more: calls go on, by each gateway's own count.
        devstack::process::signal(running.id().unwrap(), Signal::SIGSTOP).unwrap();
        for (gateway, ops) in [&ops, &other_ops].into_iter().enumerate() {
            until("the gateway knows that Redis is away", || async { metric(ops, "rates_shared").await == 0.0 }).await;
            assert_eq!(call(gateway).await.status, 404);
            assert!(metric(ops, "rates_kept_alone_total").await >= 1.0);
        }
        // Which holds a caller to its rate, once for each.
        let bob = fleet.caller("rates-alone", "bob").await;
        for gateway in [bob.at(&first), bob.at(&second)] {
            let call = async |_: usize| gateway.send(Method::GET, MISSING, None).await;
            let (took, refused) = until_let_in(2 * RATES[0], Instant::now(), call).await;
            assert!(took > Duration::from_millis(950) && !refused.is_empty(), "{took:?}");
        }
        // It is killed, and comes again with nothing.
        running.kill().await.unwrap();
        assert_eq!(call(0).await.status, 404);
        let mut running = redis.program().spawn().unwrap();
        for ops in [&ops, &other_ops] {
            until("rates are shared again", || async { metric(ops, "rates_shared").await == 1.0 }).await;
        }
        let forgotten = metric(&ops, "rates_forgotten_total").await + metric(&other_ops, "rates_forgotten_total").await;
        assert_eq!(forgotten, 1.0, "the first to see it says so");
        assert_eq!(call(1).await.status, 404);
        running.kill().await.unwrap();
        home.wipe().unwrap();
    });
}

/// Whoever finds the port cannot read, change or forget what callers have left.
#[test]
fn redis_takes_one_login_and_that_reaches_rates_alone() {
    with_fleet(|fleet, _| async {
        let Ok(url) = std::fs::read_to_string(fleet.home.join("secrets/redis-url")) else {
            skipped("no rates are shared: this machine has no Redis (apt-get install redis-server)");
            return;
        };
        let address = url.rsplit('@').next().unwrap().trim();
        let connect = async |url: String| redis::Client::open(url).unwrap().get_multiplexed_async_connection().await;
        for stranger in [format!("redis://{address}"), format!("redis://flotilla:guess@{address}")] {
            let mut said = match connect(stranger).await {
                Ok(mut connection) => redis::cmd("PING").query_async::<String>(&mut connection).await,
                Err(error) => Err(error),
            };
            assert!(said.is_err(), "{:?}", said.as_mut().ok());
        }
        let mut gateway = connect(url.trim().to_owned()).await.unwrap();
        redis::cmd("PING").query_async::<String>(&mut gateway).await.unwrap();
        for command in [
            "FLUSHALL",
            "KEYS *",
            "EVAL return 0",
            "CONFIG GET *",
            "SET other 1",
            "GET other",
            "ACL LIST",
            "SHUTDOWN",
            "MONITOR",
        ] {
            let mut words = command.split(' ');
            let mut call = redis::cmd(words.next().unwrap());
            words.for_each(|word| {
                call.arg(word);
            });
            let refused = call.query_async::<redis::Value>(&mut gateway).await.unwrap_err();
            assert_eq!(refused.code(), Some("NOPERM"), "{command}: {refused}");
        }
    });
}
