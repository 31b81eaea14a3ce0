//! Calls between processes, to replicas that answer, are gone, break off or say nothing.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use proto::search::SearchTodosRequest;
use proto::search::search_service_client::SearchServiceClient;
use service::Process;
use service::client::{ReadsOnly, Upstream};
use service::config::Common;
use service::revocations::Revocations;
use service::server::{Bounds, LONGEST, serve};
use service::tls::{Authorities, Speaks, Tls};
use service::{DEGRADED, Lifecycle, notes};
use testkit::TestCertificates;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

/// What is called; stops when it is dropped.
struct Fixture {
    lifecycle: Lifecycle,
    /// How many calls, or connections that break off, came.
    came: Arc<AtomicUsize>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.lifecycle.stopping().cancel();
    }
}

/// An answer without a message's fields.
fn empty_answer() -> Response<Body> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

impl Fixture {
    fn new() -> Self {
        Self { lifecycle: Lifecycle::default(), came: Arc::default() }
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }

    /// A server that answers each call by this.
    async fn replica(
        &self,
        answer: impl Fn(HeaderMap) -> BoxFuture<'static, Response<Body>> + Clone + Send + Sync + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, came) = (listener.local_addr().unwrap(), Arc::clone(&self.came));
        let router = Router::new().fallback(move |request: axum::extract::Request| {
            came.fetch_add(1, Ordering::SeqCst);
            answer(request.headers().clone())
        });
        let bounds = Bounds { connections: 100, streams: 1_000, http2_only: true, longest: LONGEST };
        self.lifecycle.spawn("replica", serve(listener, router, (bounds, None), self.lifecycle.stopping()));
        address
    }

    async fn live(&self) -> SocketAddr {
        self.replica(|_| async { empty_answer() }.boxed()).await
    }

    async fn silent(&self) -> SocketAddr {
        self.replica(|_| std::future::pending().boxed()).await
    }

    /// A server that takes a connection, reads from it, and breaks off.
    async fn breaking_off(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, came, stop) = (listener.local_addr().unwrap(), Arc::clone(&self.came), self.lifecycle.stopping());
        self.lifecycle.spawn("breaks off", async move {
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                came.fetch_add(1, Ordering::SeqCst);
                accepted.unwrap().0.read_exact(&mut [0; 64]).await.ok();
            }
            Ok::<_, Infallible>(())
        });
        address
    }

    fn upstream(&self, addresses: &[SocketAddr]) -> Client {
        let addresses: Vec<_> = addresses.iter().map(|address| format!("http://{address}")).collect();
        SearchServiceClient::new(
            Upstream::new(&self.lifecycle, "searches", &addresses, &Authorities::default()).unwrap(),
        )
    }
}

type Client = SearchServiceClient<Upstream>;

/// A port without a listener.
fn gone() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn request(within: Duration) -> tonic::Request<SearchTodosRequest> {
    let mut request = tonic::Request::new(SearchTodosRequest::default());
    request.set_timeout(within);
    request
}

fn reading(within: Duration) -> tonic::Request<SearchTodosRequest> {
    let mut request = request(within);
    request.extensions_mut().insert(ReadsOnly);
    request
}

async fn send(client: &Client, request: tonic::Request<SearchTodosRequest>) -> Result<(), Status> {
    client.clone().search_todos(request).await.map(drop)
}

const LONG: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_replica_that_is_gone_is_left_out_and_no_call_fails() {
    let fixture = Fixture::new();
    let client = fixture.upstream(&[gone(), fixture.live().await, gone()]);
    for call in 0..300 {
        send(&client, request(LONG)).await.unwrap_or_else(|status| panic!("call {call}: {status}"));
    }
    assert_eq!(fixture.came(), 300);
}

#[tokio::test]
async fn what_may_have_been_done_is_sent_again_only_where_that_does_no_harm() {
    let fixture = Fixture::new();
    let client = fixture.upstream(&[fixture.breaking_off().await]);
    let lost = send(&client, request(LONG)).await.unwrap_err();
    assert_eq!((lost.code(), fixture.came()), (Code::Unavailable, 1));
    // With a key it happens once, however often it is sent; what only reads may be sent again. The breaker lets no more than four through.
    let fixture = Fixture::new();
    let client = fixture.upstream(&[fixture.breaking_off().await]);
    let mut keyed = request(LONG);
    keyed.metadata_mut().insert("idempotency-key", "k".parse().unwrap());
    assert_eq!(send(&client, keyed).await.unwrap_err().code(), Code::Unavailable);
    assert!((2..=4).contains(&fixture.came()), "{}", fixture.came());
    let fixture = Fixture::new();
    let client = fixture.upstream(&[fixture.breaking_off().await, fixture.live().await]);
    for _ in 0..100 {
        send(&client, reading(LONG)).await.unwrap();
    }
    assert!(fixture.came() < 120, "what breaks off is left out: {}", fixture.came());
}

/// Some seconds: that it says nothing is found by asking it twice.
#[tokio::test]
async fn a_replica_that_says_nothing_is_found_out_and_left_out() {
    let fixture = Fixture::new();
    let paused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = fixture.upstream(&[paused.local_addr().unwrap(), fixture.live().await]);
    // The kernel takes connections for it.
    for _ in 0..4 {
        join_all((0..20).map(|_| send(&client, reading(LONG))))
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
    }
    // What may not be repeated is no probe: there it would find its end.
    for _ in 0..20 {
        send(&client, request(Duration::from_secs(3))).await.unwrap();
    }
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_says_so() {
    let fixture = Fixture::new();
    let client = fixture.upstream(&[fixture.silent().await]);
    // Callers that give no time do not have others find the replica left out.
    for request in [request(Duration::from_millis(50)), reading(Duration::from_millis(50))]
        .into_iter()
        .chain((0..10).map(|_| reading(Duration::from_millis(20))))
    {
        let late = send(&client, request).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    }
    // It is still asked.
    let late = send(&client, request(Duration::from_millis(300))).await.unwrap_err();
    assert_eq!((late.code(), fixture.came() > 0), (Code::DeadlineExceeded, true));
}

#[tokio::test]
async fn repeats_are_a_share_of_all_calls() {
    let fixture = Fixture::new();
    let mut addresses = Vec::new();
    for _ in 0..200 {
        let gone_again = |_| async { Response::builder().status(503).body(Body::empty()).unwrap() }.boxed();
        addresses.push(fixture.replica(gone_again).await);
    }
    let client = fixture.upstream(&addresses);
    let failed = join_all((0..200).map(|_| send(&client, reading(LONG)))).await;
    assert!(failed.iter().all(Result::is_err));
    // A hundred in reserve, and a fifth of all: without a budget four of each would come.
    assert!((200..=200 + 100 + 40 + 20).contains(&fixture.came()), "{}", fixture.came());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_that_meet_at_a_replica_that_is_gone_all_find_the_one_that_lives() {
    let fixture = Fixture::new();
    let client = fixture.upstream(&[gone(), fixture.live().await]);
    let calls = futures::stream::iter(0..4_000).map(|_| {
        let client = client.clone();
        tokio_util::task::TaskTracker::new().spawn(async move { send(&client, request(LONG)).await })
    });
    let outcomes: Vec<_> = calls.buffer_unordered(64).collect().await;
    assert_eq!(outcomes.into_iter().filter(|outcome| outcome.as_ref().unwrap().is_err()).count(), 0);
}

/// Serves at this address until the returned is cancelled.
async fn serve_at(fixture: &Fixture, address: SocketAddr) -> CancellationToken {
    let listener = TcpListener::bind(address).await.unwrap();
    let stop = CancellationToken::new();
    let bounds = Bounds { connections: 10, streams: 10, http2_only: true, longest: LONGEST };
    let router = Router::new().fallback(|| async { empty_answer() });
    fixture.lifecycle.spawn("replica", serve(listener, router, (bounds, None), stop.clone()));
    stop
}

#[tokio::test]
async fn replicas_are_restarted_one_after_the_other_and_no_call_fails() {
    let fixture = Fixture::new();
    let addresses = [gone(), gone()];
    let mut stops = [serve_at(&fixture, addresses[0]).await, serve_at(&fixture, addresses[1]).await];
    let client = fixture.upstream(&addresses);
    for n in 0..6 {
        stops[n % 2].cancel();
        for _ in 0..20 {
            send(&client, reading(LONG)).await.unwrap();
        }
        testkit::until("the port is free", || async { TcpListener::bind(addresses[n % 2]).await.is_ok() }).await;
        stops[n % 2] = serve_at(&fixture, addresses[n % 2]).await;
    }
}

#[tokio::test]
async fn a_replica_that_is_back_is_used_again() {
    let fixture = Fixture::new();
    let address = gone();
    let client = fixture.upstream(&[address]);
    let away = send(&client, request(LONG)).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable);
    assert!(!away.message().contains("127.0.0.1"), "no internals: {away}");
    serve_at(&fixture, address).await;
    testkit::until("it answers", || async { send(&client, request(LONG)).await.is_ok() }).await;
}

#[tokio::test]
async fn a_host_with_a_name_is_looked_up() {
    let fixture = Fixture::new();
    let port = fixture.live().await.port();
    let upstream =
        Upstream::new(&fixture.lifecycle, "searches", &[format!("http://localhost:{port}")], &Authorities::default())
            .unwrap();
    let client = SearchServiceClient::new(upstream);
    testkit::until("it is found", || async { send(&client, reading(LONG)).await.is_ok() }).await;
    for wrong in ["localhost:1", "https://localhost:1", "http://localhost", ""] {
        assert!(
            Upstream::new(&fixture.lifecycle, "searches", &[wrong.to_owned()], &Authorities::default()).is_err(),
            "{wrong:?}"
        );
    }
}

/// A server with a certificate, which serves until it is stopped.
fn with_tls(fixture: &Fixture, address: SocketAddr, certificates: &TestCertificates) -> CancellationToken {
    let socket = std::net::TcpListener::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(socket).unwrap();
    let tls = Tls { certificate: Some(certificates.file("tls.crt")), key: Some(certificates.file("tls.key")) };
    let acceptor =
        tls.open(&fixture.lifecycle).unwrap().map(|certificate| certificate.acceptor(Speaks::Http2).unwrap());
    let bounds = Bounds { connections: 100, streams: 1_000, http2_only: true, longest: LONGEST };
    let router = Router::new().fallback(|| async { empty_answer() });
    let stop = CancellationToken::new();
    fixture.lifecycle.spawn("replica", serve(listener, router, (bounds, acceptor), stop.clone()));
    stop
}

#[tokio::test]
async fn a_call_over_tls_trusts_its_authorities_alone_and_new_ones_without_a_restart() {
    let (fixture, certificates) = (Fixture::new(), TestCertificates::new("127.0.0.1"));
    let address = gone();
    let stop = with_tls(&fixture, address, &certificates);
    let to = |address: String, authorities: Option<PathBuf>| {
        let authorities = Authorities { file: authorities };
        Upstream::new(&fixture.lifecycle, "searches", &[address], &authorities).map(SearchServiceClient::new)
    };
    let trusted = certificates.file("ca.crt");
    let client = to(format!("https://{address}"), Some(trusted.clone())).unwrap();
    send(&client, request(LONG)).await.unwrap();

    // Of another authority, or not over TLS: nobody answers.
    let other = TestCertificates::new("127.0.0.1");
    for (to_where, authorities) in
        [(format!("https://{address}"), Some(other.file("ca.crt"))), (format!("http://{address}"), None)]
    {
        let stranger = to(to_where.clone(), authorities).unwrap();
        let refused = send(&stranger, request(LONG)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{to_where}: {refused}");
    }
    let none = to(format!("https://{address}"), None).unwrap_err().to_string();
    assert!(none.contains("FLOTILLA_TLS_AUTHORITIES"), "{none}");

    // The authority changes: first both are trusted, then the server has a certificate of the new one.
    let both = [certificates.file("ca.crt"), other.file("ca.crt")].map(|file| std::fs::read(file).unwrap()).concat();
    std::fs::write(&trusted, both).unwrap();
    send(&client, request(LONG)).await.unwrap();
    stop.cancel();
    testkit::until("the port is free", || async { std::net::TcpListener::bind(address).is_ok() }).await;
    let _stop = with_tls(&fixture, address, &other);
    testkit::until("it trusts the new one", || async { send(&client, request(LONG)).await.is_ok() }).await;
}

#[tokio::test]
async fn a_replica_that_does_not_shake_hands_costs_no_call() {
    let (fixture, certificates) = (Fixture::new(), TestCertificates::new("127.0.0.1"));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let live = gone();
    let _stop = with_tls(&fixture, live, &certificates);
    let addresses = [silent.local_addr().unwrap(), live].map(|address| format!("https://{address}"));
    let authorities = Authorities { file: Some(certificates.file("ca.crt")) };
    let client = Upstream::new(&fixture.lifecycle, "searches", &addresses, &authorities).unwrap();
    let client = SearchServiceClient::new(client);
    for _ in 0..4 {
        send(&client, request(LONG)).await.unwrap();
    }
}

/// A service that is degraded, and calls another one for each call.
#[derive(Clone)]
struct Calling(Upstream);

impl NamedService for Calling {
    const NAME: &'static str = "flotilla.search.v1.SearchService";
}

impl Service<Request<Body>> for Calling {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let mut other = SearchServiceClient::new(self.0.clone());
        async move {
            notes::degraded("search-index");
            Ok(other
                .search_todos(SearchTodosRequest::default())
                .await
                .map_or_else(Status::into_http, |_| empty_answer()))
        }
        .boxed()
    }
}

#[tokio::test]
async fn a_callers_token_is_handed_to_nobody_and_what_an_answer_lacks_is_said() {
    let fixture = Fixture::new();
    let issuer = testkit::TestIssuer::new();
    let bearer = issuer.bearer("acme", "ann");
    let behind = fixture
        .replica(move |headers| {
            // Without a credential of its own a service carries nobody along.
            let handed = headers.contains_key("authorization") || !headers.contains_key("grpc-timeout");
            async move { if handed { Status::internal("whose is it?").into_http() } else { empty_answer() } }.boxed()
        })
        .await;
    let common = Common::on_loopback(issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE);
    let process = Process::new("searches", "test");
    let upstream =
        Upstream::new(&fixture.lifecycle, "behind", &[format!("http://{behind}")], &Authorities::default()).unwrap();
    let address =
        service::grpc::serve(&process, &common, proto::DESCRIBED, (Calling(upstream), Revocations::default()))
            .await
            .unwrap();
    let mut client = fixture.upstream(&[address]);
    let mut request = reading(LONG);
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    let answer = client.search_todos(request).await.unwrap();
    assert_eq!(answer.metadata().get(DEGRADED).unwrap(), "search-index");
    assert_eq!(fixture.came(), 1);
    assert_eq!(send(&client, reading(LONG)).await.unwrap_err().code(), Code::Unauthenticated);
    process.lifecycle.stopping().cancel();
}
