//! A service that cannot hear what identity takes away says so, and in the end believes no token of identity's.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::future::IntoFuture as _;
use std::time::Duration;

use contracts::events::identity::MemberId;
use futures::future::try_join_all;
use proto::search::search_service_client::SearchServiceClient;
use proto::search::search_service_server::{SearchService, SearchServiceServer};
use proto::search::{SearchTodosRequest, SearchTodosResponse};
use serde_json::json;
use service::config::Common;
use service::revocations::{Ages, Revocations};
use service::{DEGRADED, Lifecycle, Process};
use testkit::nats::changed_now;
use testkit::{SlowApi, TestIssuer, TestNats, unique, until};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

/// Finds nothing.
struct Empty;

#[tonic::async_trait]
impl SearchService for Empty {
    async fn search_todos(&self, _: Request<SearchTodosRequest>) -> Result<Response<SearchTodosResponse>, Status> {
        Ok(Response::new(SearchTodosResponse::default()))
    }
}

/// The outcome of a call: the degraded parts that its answer names, or code and reason of its error.
async fn outcome(channel: &Channel, bearer: &str) -> Result<String, String> {
    let mut request = Request::new(SearchTodosRequest::default());
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    match SearchServiceClient::new(channel.clone()).search_todos(request).await {
        Ok(answer) => Ok(answer.metadata().get(DEGRADED).map_or("", |parts| parts.to_str().unwrap()).to_owned()),
        Err(status) => Err(format!("{:?} {}", status.code(), status.get_details_error_info().unwrap().reason)),
    }
}

/// A service that knows what identity takes away by this client; its process ends with the returned lifecycle.
async fn served(nats: service::nats::Client, issuer: &TestIssuer, ages: Ages) -> (Lifecycle, Channel) {
    let process = Process::new("search-projector", "test");
    let revocations = Revocations::follow_within(&process, nats, ages);
    let common = Common::on_loopback(issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE);
    let served = (SearchServiceServer::new(Empty), revocations);
    let address = service::grpc::serve(&process, &common, proto::DESCRIBED, served).await.unwrap();
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    (process.lifecycle, channel)
}

#[tokio::test]
async fn much_that_others_publish_keeps_nobody_from_being_out() {
    let (nats, issuer) = (TestNats::start().await, TestIssuer::new());
    let bob = MemberId::new(unique("").parse().unwrap());
    let producer = async_nats::jetstream::new(nats.client("identity").await);
    let (subject, payload) =
        ("evt.identity.group_updated.v1.globex", r#"{"type": "identity.group_updated.v1", "data": {}}"#);
    let mut acks = Vec::new();
    for _ in 0..2_000 {
        acks.push(producer.publish(subject, payload.into()).await.unwrap().into_future());
    }
    try_join_all(acks).await.unwrap();
    nats.remove_member("acme", changed_now(bob, "bob")).await;
    // One after the other would take two minutes.
    let slow = SlowApi::to(nats.port(), Duration::from_millis(50)).await;
    let options =
        async_nats::ConnectOptions::new().credentials_file(nats.credentials("search-projector")).await.unwrap();
    let options = options.custom_inbox_prefix("_INBOX_search-projector");
    let client = options.connect(format!("nats://127.0.0.1:{}", slow.port)).await.unwrap();
    let (lifecycle, channel) = served(client, &issuer, Ages::default()).await;
    let his = issuer.bearer_with("acme", "bob", &json!({"role": "owner", "sources": [bob]}));
    let out = Err("Unauthenticated TOKEN_REVOKED".to_owned());
    until("he is out", || async { outcome(&channel, &his).await == out }).await;
    lifecycle.shut_down().await;
}

#[tokio::test]
async fn who_does_not_hear_identity_for_long_says_so_and_then_believes_no_token_until_it_does() {
    let (mut nats, issuer) = (TestNats::start().await, TestIssuer::new());
    // Seconds where a fleet takes minutes, and more than a look takes on a busy machine.
    let ages = Ages { degrades: Duration::from_secs(3), refuses: Duration::from_secs(6) };
    let (lifecycle, channel) = served(nats.client("search-projector").await, &issuer, ages).await;
    let new_id = || MemberId::new(unique("").parse().unwrap());
    let (ann, bob) = (new_id(), new_id());
    let of = |user: &str, id: MemberId| issuer.bearer_with("acme", user, &json!({"role": "owner", "sources": [id]}));
    // What names no member, program or key is no token of identity's.
    let (hers, his, another) = (of("ann", ann), of("bob", bob), issuer.bearer("acme", "eve"));
    let is = async |bearer: &str, wanted: Result<&str, &str>| {
        outcome(&channel, bearer).await.as_deref().map_err(String::as_str) == wanted
    };
    until("identity is heard", || is(&hers, Ok(""))).await;
    nats.kill().await;
    until("it is degraded", || is(&hers, Ok("identity"))).await;
    until("it refuses", || is(&hers, Err("Unavailable REVOCATIONS_UNKNOWN"))).await;
    assert_eq!(outcome(&channel, &another).await.unwrap(), "");
    nats.restart().await;
    nats.remove_member("acme", changed_now(bob, "bob")).await;
    until("it is heard again", || is(&hers, Ok(""))).await;
    until("he is out", || is(&his, Err("Unauthenticated TOKEN_REVOKED"))).await;
    lifecycle.shut_down().await;
}
