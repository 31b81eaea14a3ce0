//! The fleet as its users meet it. All tests of this binary share one fleet and keep to tenants of their own.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod access;

mod attacks;

mod bundle;

mod elsewhere;

mod hostile;

mod http;

mod lines;

mod operator;

mod rates;

mod replicas;

mod external_consumers;

mod strangers;

mod tenants;

mod trace;

mod watching;

use std::sync::OnceLock;

use e2e::Fleet;
use tokio::runtime::Runtime;

/// The fleet, the receiver of its spans, and the runtime both live on; gone when the test process ends.
struct Shared {
    runtime: Runtime,
    fleet: Fleet,
    spans: trace::Received,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

/// Runs a test on the shared fleet.
fn with_fleet<F: Future<Output = ()>>(test: impl FnOnce(&'static Fleet, &'static trace::Received) -> F) {
    let shared = SHARED.get_or_init(|| {
        let runtime = Runtime::new().unwrap();
        let (fleet, spans) = runtime.block_on(async {
            let (endpoint, spans) = trace::receive().await;
            (Fleet::start(Some(&endpoint)).await, spans)
        });
        Shared { runtime, fleet, spans }
    });
    shared.runtime.block_on(test(&shared.fleet, &shared.spans));
}
