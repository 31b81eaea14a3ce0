//! A suspended tenant reads, and writes nothing.

use contracts::events::identity::TenantStatus;
use testkit::until;

use crate::harness::{Harness, reason};
use crate::tenancy::{call, rpcs};

#[tokio::test]
async fn a_suspended_tenant_reads_and_writes_nothing_until_it_is_resumed() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    let vessel = ann.named("Passat").await;
    let logbook = ann.logbook_of(&vessel).await;
    harness.nats.set_status("acme", TenantStatus::Suspended, (2, 2)).await;
    until("writes are refused", || async {
        let renamed = call(&ann, "UpdateVessel", &vessel.id, &logbook.id).await;
        renamed.is_err() && reason(renamed) == "TENANT_SUSPENDED"
    })
    .await;
    for rpc in rpcs() {
        let result = call(&ann, &rpc, &vessel.id, &logbook.id).await;
        if rpc.starts_with("Get") || rpc.starts_with("List") {
            assert_eq!(result.unwrap(), 1, "{rpc}");
        } else {
            assert_eq!(reason(result), "TENANT_SUSPENDED", "{rpc}");
        }
    }
    // Another tenant's vessel gets its logbook.
    eve.logbook_of(&eve.named("Passat").await).await;
    harness.nats.set_status("acme", TenantStatus::Active, (3, 3)).await;
    until("it writes again", || async { call(&ann, "DeleteVessel", &vessel.id, &logbook.id).await.is_ok() }).await;
}
