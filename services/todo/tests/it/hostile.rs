//! Clients that send an invalid call, too much, or too much at once.

use std::num::{NonZeroU16, NonZeroU32};

use futures::StreamExt as _;
use futures::future::{join, join_all};
use proto::todo::Todo;
use service::config::Admission;
use sqlx::Executor as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use authz::Caller;
use service::Call;

use testkit::unique;

use crate::harness::{Harness, reason};

/// A call as bytes, and how it was refused.
async fn refused(harness: &Harness, headers: &[(&str, &str)], message: &[u8]) -> (Code, String) {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let http = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/flotilla.todo.v1.TodoService/DeleteTodo", harness.app.address);
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
    let harness = Harness::start().await;
    let (ann, bob) = (harness.issuer.bearer("acme", "ann"), harness.issuer.bearer("acme", "bob"));
    let good = [("authorization", ann.as_str())];
    // A number where the id is a text, a text that ends before its length, and more than a message may have.
    for (message, wanted) in [
        (&[0x08, 0x05][..], (Code::InvalidArgument, "INVALID_ARGUMENT")),
        (&[0x0a, 0x7f, b'x'], (Code::InvalidArgument, "INVALID_ARGUMENT")),
        (&[0x0a, 0x01, 0xff], (Code::InvalidArgument, "INVALID_ARGUMENT")),
        (&vec![0; 5 << 20], (Code::ResourceExhausted, "TOO_LARGE")),
    ] {
        let (code, reason) = refused(&harness, &good, message).await;
        assert_eq!((code, reason.as_str()), wanted, "{:?}", &message[..message.len().min(8)]);
    }
    let packed = [("authorization", ann.as_str()), ("grpc-encoding", "zstd")];
    assert_eq!(refused(&harness, &packed, &[]).await, (Code::Unimplemented, "NO_SUCH_METHOD".to_owned()));
    let twice = [("authorization", ann.as_str()), ("authorization", bob.as_str())];
    assert_eq!(refused(&harness, &twice, &[]).await, (Code::Unauthenticated, "TOKEN_INVALID".to_owned()));
}

#[tokio::test]
async fn what_another_is_changing_is_answered_soon_and_a_deadline_is_kept() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let todo = ann.titled("x").await;
    let mut admin = harness.database.admin().await;
    admin.execute("begin; select * from todo for update").await.unwrap();
    let db = service::Db::lazy(&harness.database.app.clone().into(), "test", 1).unwrap();
    let call = Call::of_request(Caller::service("acme".parse().unwrap(), "test".parse().unwrap()), None);
    let mut tx = db.begin(&call).await.unwrap();
    let patience: String = sqlx::query_scalar("show lock_timeout").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(patience, "1s");
    let locked = ann.rename(&todo.id, "y").await.unwrap_err();
    assert!(locked.get_details_retry_info().is_some());
    assert_eq!((locked.code(), reason(Err::<(), _>(locked))), (Code::Aborted, "LOCKED".to_owned()));
    let bearer = harness.issuer.bearer("acme", "ann");
    let id = [&[0x0a, u8::try_from(todo.id.len()).unwrap()], todo.id.as_bytes()].concat();
    let headers = [("authorization", bearer.as_str()), ("grpc-timeout", "200m")];
    assert_eq!(refused(&harness, &headers, &id).await, (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    admin.execute("rollback").await.unwrap();
    assert_eq!(ann.rename(&todo.id, "y").await.unwrap().title, "y");
}

/// What is asked of it says by when it is of no use any more.
#[tokio::test]
async fn a_deadline_reaches_the_database() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let todo = ann.titled("x").await;
    let mut admin = harness.database.admin().await;
    // Whoever reads or writes a todo is asked, and the server's log has the answer.
    let name = unique("asked-");
    let asks = format!(
        "create function asked() returns bool language plpgsql as $$ begin \
         raise warning '{name} %', (select setting from pg_settings where name = 'statement_timeout'); return true; end $$; \
         create policy asked on todo as restrictive using (asked())"
    );
    admin.execute(sqlx::AssertSqlSafe(asks)).await.unwrap();
    let log = testkit::backing::home().join("logs/postgres.log");
    let asked = || async {
        let log = std::fs::read(&log).unwrap();
        let log = String::from_utf8_lossy(&log).into_owned();
        let said = log.lines().filter_map(|line| line.split_once(&format!("{name} "))?.1.trim().parse::<u64>().ok());
        said.collect::<Vec<_>>()
    };
    ann.get(&todo.id).await.unwrap();
    testkit::until("the log has it", || async { !asked().await.is_empty() }).await;
    assert!(asked().await.iter().all(|millis| *millis == 5_000), "a call without a deadline has the usual one");
    let before = asked().await.len();
    let mut request = tonic::Request::new(proto::todo::GetTodoRequest { id: todo.id.clone() });
    request.metadata_mut().insert("authorization", harness.issuer.bearer("acme", "ann").parse().unwrap());
    request.set_timeout(std::time::Duration::from_secs(4));
    let address = format!("http://{}", harness.app.address);
    let mut todos = proto::todo::todo_service_client::TodoServiceClient::connect(address).await.unwrap();
    todos.get_todo(request).await.unwrap();
    testkit::until("the log has that too", || async { asked().await.len() > before }).await;
    let asked = asked().await.split_off(before);
    assert!(asked.iter().all(|millis| *millis < 4_100), "{asked:?}");
}

#[tokio::test]
async fn one_tenant_that_does_too_much_waits_and_is_refused_and_no_other_is() {
    let rate = NonZeroU32::new(10).unwrap();
    let (tenant_at_work, principal_at_work) = (NonZeroU16::new(100).unwrap(), NonZeroU16::new(2).unwrap());
    let admission =
        Admission { tenant_rate: rate, tenant_at_work, principal_rate: rate, principal_at_work, ..Admission::wide() };
    let harness = Harness::behind(admission).await;
    let (ann, bob) = (harness.client("acme", "ann"), harness.client("globex", "bob"));
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
    assert_eq!(harness.count("todo").await, i64::try_from(done.len()).unwrap() + 1, "what was refused did not happen");
}

/// As both names of the protocol, and only what this service answers.
#[tokio::test]
async fn reflection_answers_only_where_it_is_asked_for_and_lists_what_is_served() {
    use tonic_reflection::pb::{v1, v1alpha};

    for wanted in [true, false] {
        let harness = Harness::behind(Admission { reflection: wanted, ..Admission::wide() }).await;
        let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
        let list = v1::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let mut client = v1::server_reflection_client::ServerReflectionClient::new(harness.channel.clone());
        match client.server_reflection_info(futures::stream::iter([list])).await {
            Ok(answers) => {
                let answer = answers.into_inner().next().await.unwrap().unwrap().message_response.unwrap();
                let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
                    panic!("{answer:?}")
                };
                let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
                let reflection = |name: &&str| !name.starts_with("grpc.reflection.");
                let names: Vec<&str> = names.into_iter().filter(reflection).collect();
                assert!(wanted);
                assert_eq!(names, ["flotilla.todo.v1.TodoService", "grpc.health.v1.Health"]);
            }
            Err(status) => assert_eq!((wanted, status.code()), (false, Code::Unimplemented)),
        }
        let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
        let list = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(harness.channel.clone());
        assert_eq!(client.server_reflection_info(futures::stream::iter([list])).await.is_ok(), wanted);
    }
}

#[tokio::test]
async fn a_service_tells_of_its_health_by_its_name_and_of_a_method_that_it_has_not() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;

    let harness = Harness::start().await;
    let mut health = HealthClient::new(harness.channel.clone());
    for (service, wanted) in
        [("", true), ("flotilla.todo.v1.TodoService", true), ("flotilla.search.v1.SearchService", false)]
    {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await;
        let serving = answer.map(|answer| answer.into_inner().status() == ServingStatus::Serving);
        assert_eq!(serving.unwrap_or(false), wanted, "{service}");
    }
    let mut search = proto::search::search_service_client::SearchServiceClient::new(harness.channel.clone());
    let mut request = tonic::Request::new(proto::search::SearchTodosRequest::default());
    request.metadata_mut().insert("authorization", harness.issuer.bearer("acme", "ann").parse().unwrap());
    let status = search.search_todos(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.get_details_error_info().unwrap().reason, "NO_SUCH_METHOD");
    assert_eq!(status.metadata().get("flotilla-release").unwrap(), "test", "as its configuration says");
}

#[tokio::test]
async fn of_two_changes_that_wait_for_each_other_one_is_refused_and_may_be_repeated() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("once");
    let todo =
        ann.create(Todo { title: "x".to_owned(), labels: vec!["x".to_owned()], ..Todo::default() }).await.unwrap();
    let mut admin = harness.database.admin().await;
    // The database asks the service's transaction first, before its wait for the lock ends, and so gives it up.
    let soon = format!("alter role todo_app in database {} set deadlock_timeout = '500ms'", harness.database.name);
    admin.execute(sqlx::AssertSqlSafe(soon)).await.unwrap();
    admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'todo_app' and datname = current_database()").await.unwrap();
    testkit::until("the service has new connections", || async { ann.get(&todo.id).await.is_ok() }).await;
    admin.execute("set deadlock_timeout = '30s'; begin; select * from todo_label for update").await.unwrap();
    let change = || Todo { labels: vec!["y".to_owned()], ..Todo::default() };
    let other = async {
        testkit::until("the call waits for the labels", || async {
            let sql = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and usename = 'todo_app' and datname = current_database())";
            sqlx::query_scalar(sql).fetch_one(&mut harness.database.admin().await).await.unwrap()
        })
        .await;
        admin.execute("select * from todo for update; rollback").await.unwrap();
    };
    let (refused, ()) = join(ann.update(&todo.id, change(), &[]), other).await;
    let refused = refused.unwrap_err();
    assert!(refused.get_details_retry_info().is_some());
    assert_eq!((refused.code(), reason(Err::<(), _>(refused))), (Code::Aborted, "LOCKED".to_owned()));
    testkit::until("the database has counted a deadlock", || async {
        let sql = "select deadlocks = 1 from pg_stat_database where datname = current_database()";
        sqlx::query_scalar(sql).fetch_one(&mut harness.database.admin().await).await.unwrap()
    })
    .await;
    assert_eq!(ann.update(&todo.id, change(), &[]).await.unwrap().labels, ["y"]);
}
