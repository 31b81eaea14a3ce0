//! Clients that send what is no call, too much, or too much at once.

use std::num::NonZeroU32;

use futures::StreamExt as _;
use futures::future::{join, join_all};
use proto::todo::Todo;
use service::config::Door;
use service::limits::{Allowance, Allowances};
use sqlx::Executor as _;
use tonic::{Code, Status};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_types::StatusExt as _;

use crate::harness::{Fleet, reason};

/// A call as bytes, and how it was refused.
async fn refused(fleet: &Fleet, headers: &[(&str, &str)], message: &[u8]) -> (Code, String) {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let http = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/flotilla.todo.v1.TodoService/DeleteTodo", fleet.app.address);
    let mut request = http.post(url).header("content-type", "application/grpc").body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = Status::from_header_map(answer.headers()).unwrap();
    let reason = status.get_details_error_info().map(|info| info.reason);
    (status.code(), reason.unwrap_or_default())
}

#[tokio::test]
async fn what_is_no_call_is_the_callers_fault() {
    let fleet = Fleet::start().await;
    let (ann, bob) = (fleet.issuer.bearer("acme", "ann"), fleet.issuer.bearer("acme", "bob"));
    let good = [("authorization", ann.as_str())];
    // A number where the id is a text, a text that ends before its length, and more than a message may have.
    for (message, wanted) in [
        (&[0x08, 0x05][..], (Code::InvalidArgument, "INVALID_ARGUMENT")),
        (&[0x0a, 0x7f, b'x'], (Code::InvalidArgument, "INVALID_ARGUMENT")),
        (&[0x0a, 0x01, 0xff], (Code::InvalidArgument, "INVALID_ARGUMENT")),
        (&vec![0; 5 << 20], (Code::ResourceExhausted, "TOO_LARGE")),
    ] {
        let (code, reason) = refused(&fleet, &good, message).await;
        assert_eq!((code, reason.as_str()), wanted, "{:?}", &message[..message.len().min(8)]);
    }
    let twice = [("authorization", ann.as_str()), ("authorization", bob.as_str())];
    assert_eq!(refused(&fleet, &twice, &[]).await, (Code::Unauthenticated, "TOKEN_INVALID".to_owned()));
}

#[tokio::test]
async fn what_another_is_changing_is_answered_soon_and_a_deadline_is_kept() {
    let fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    let todo = ann.titled("x").await;
    let mut admin = fleet.database.admin().await;
    admin.execute("begin; select * from todo for update").await.unwrap();
    let db = service::Db::lazy(&fleet.database.app.clone().into(), "test", 1).unwrap();
    let mut tx = db.begin(&"acme".parse().unwrap()).await.unwrap();
    let patience: String = sqlx::query_scalar("show lock_timeout").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(patience, "1s");
    let locked = ann.rename(&todo.id, "y").await.unwrap_err();
    assert!(locked.get_details_retry_info().is_some());
    assert_eq!((locked.code(), reason(Err::<(), _>(locked))), (Code::Aborted, "LOCKED".to_owned()));
    let bearer = fleet.issuer.bearer("acme", "ann");
    let id = [&[0x0a, u8::try_from(todo.id.len()).unwrap()], todo.id.as_bytes()].concat();
    let headers = [("authorization", bearer.as_str()), ("grpc-timeout", "200m")];
    assert_eq!(refused(&fleet, &headers, &id).await, (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    admin.execute("rollback").await.unwrap();
    assert_eq!(ann.rename(&todo.id, "y").await.unwrap().title, "y");
}

#[tokio::test]
async fn one_tenant_that_does_too_much_waits_and_is_refused_and_no_other_is() {
    let few = Allowance { rate: NonZeroU32::new(10).unwrap(), at_work: 2 };
    let tenant = Allowance { at_work: 100, ..few };
    let fleet = Fleet::behind(Door { allowances: Allowances { tenant, principal: few }, ..Door::wide() }).await;
    let (ann, bob) = (fleet.client("acme", "ann"), fleet.client("globex", "bob"));
    let todo = bob.titled("x").await;
    let create = || ann.create(Todo { title: "x".to_owned(), ..Todo::default() });
    let (created, read) = join(join_all((0..100).map(|_| create())), bob.get(&todo.id)).await;
    assert_eq!(read.unwrap(), todo);
    let (done, refused): (Vec<_>, Vec<_>) = created.into_iter().partition(Result::is_ok);
    assert!(done.len() >= 3 && refused.len() > 10, "some waited for their turn: {} were done", done.len());
    for refused in refused {
        let status = refused.as_ref().unwrap_err();
        assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.unwrap().as_secs() >= 1));
        assert_eq!((status.code(), reason(refused).as_str()), (Code::ResourceExhausted, "TOO_MANY_REQUESTS"));
    }
    assert_eq!(fleet.count("todo").await, i64::try_from(done.len()).unwrap() + 1, "what was refused did not happen");
}

#[tokio::test]
async fn reflection_answers_only_where_it_is_asked_for() {
    for wanted in [true, false] {
        let fleet = Fleet::behind(Door { reflection: wanted, ..Door::wide() }).await;
        let list = MessageRequest::ListServices(String::new());
        let list = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let asked = futures::stream::iter([list]);
        let answer = ServerReflectionClient::new(fleet.channel.clone()).server_reflection_info(asked).await;
        match answer {
            Ok(answers) => assert!(wanted && answers.into_inner().next().await.unwrap().is_ok()),
            Err(status) => assert_eq!((wanted, status.code()), (false, Code::Unimplemented)),
        }
    }
}
