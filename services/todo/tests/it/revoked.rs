//! What identity takes away ends what a token in hand may do.

use contracts::events::identity::MemberId;
use proto::todo::ListTodosRequest;
use serde_json::json;
use testkit::nats::changed_now;
use testkit::{unique, until};

use crate::harness::{Client, Harness, reason};
use crate::tenancy::{call, rpcs};

async fn listed(client: &Client) -> String {
    let listed = client.list(ListTodosRequest::default()).await;
    if listed.is_ok() { "OK".to_owned() } else { reason(listed) }
}

#[tokio::test]
async fn a_token_of_whoever_has_left_is_void_also_once_the_stream_was_lost() {
    let mut harness = Harness::start().await;
    let new_id = || MemberId::new(unique("").parse().unwrap());
    let (bob, kim) = (new_id(), new_id());
    let of = |user: &str, id: MemberId| harness.client_as("acme", user, &json!({"role": "owner", "sources": [id]}));
    let (his, hers, another) = (of("bob", bob), of("kim", kim), harness.client("acme", "bob"));
    // Until identity's stream is read, no such token is believed.
    until("it is read", || async { listed(&his).await == "OK" }).await;
    harness.nats.remove_member("acme", changed_now(bob, "bob")).await;
    until("he is out", || async { listed(&his).await == "TOKEN_REVOKED" }).await;
    for rpc in rpcs() {
        assert_eq!(reason(call(&his, &rpc, "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f").await), "TOKEN_REVOKED", "{rpc}");
    }
    assert_eq!((listed(&hers).await, listed(&another).await), ("OK".to_owned(), "OK".to_owned()));
    harness.nats.kill().await;
    assert_eq!((listed(&his).await.as_str(), listed(&hers).await.as_str()), ("TOKEN_REVOKED", "OK"), "from memory");
    harness.nats.wipe();
    harness.nats.restart().await;
    harness.nats.remove_member("acme", changed_now(kim, "kim")).await;
    until("she is out", || async { listed(&hers).await == "TOKEN_REVOKED" }).await;
    assert_eq!(listed(&his).await, "TOKEN_REVOKED");
    // A process that starts now reads what was taken away before.
    let (app, lifecycle) = harness.second().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", app.address)).unwrap();
    let claims = json!({"role": "owner", "sources": [kim]});
    let second = Client::new(channel.connect().await.unwrap(), harness.issuer.bearer_with("acme", "kim", &claims));
    until("it has read", || async { listed(&second).await == "TOKEN_REVOKED" }).await;
    lifecycle.shut_down().await;
}
