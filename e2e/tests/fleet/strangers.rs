//! A stranger with a key begins: reads the pages, generates a client, writes a todo with it, lists it, and sees it arrive.

use std::io::Write as _;

use e2e::{Caller, Fleet};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::with_fleet;

#[path = "../../../docs/clients/rust/walk.rs"]
#[expect(dead_code, reason = "its main")]
mod walk;

/// What the script ends with where a registry cannot be had.
const UNAVAILABLE: i32 = 3;

/// Says so loudly.
pub fn skipped(what: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIPPED: {what}").unwrap();
}

/// The key of a program of a new tenant, which reads and writes todos.
async fn key(fleet: &Fleet, tenant: &str) -> Caller {
    let owner = fleet.person(&format!("{tenant}-owner")).await;
    owner.sign_up(tenant).await;
    let account = json!({"name": "stranger", "role": "MEMBER"});
    let account = owner.send(Method::POST, "/v1/serviceAccounts", Some(account)).await.body;
    let key = json!({"serviceAccount": account["id"], "name": "first", "scopes": ["todo:read", "todo:write"]});
    let key = owner.send(Method::POST, "/v1/apiKeys", Some(key)).await.body;
    owner.with_token(key["key"].as_str().unwrap())
}

/// The walk, by a client in this language that is generated from what the running gateway says.
async fn walks(fleet: &Fleet, language: &str) {
    let program = key(fleet, &format!("walks-{language}")).await;
    let document = program.request(Method::GET, "/openapi.json").send().await.unwrap().text().await.unwrap();
    let file = fleet.home.join(format!("openapi-{language}.json"));
    std::fs::write(&file, document).unwrap();
    let mut command = Command::new(e2e::workspace().join("scripts/clients.sh"));
    let url = format!("http://{}", fleet.unit("gateway").address);
    command.arg(language).arg(&file).arg(url).arg(program.token().unwrap());
    assert_walked(command, language).await;
}

async fn assert_walked(mut command: Command, language: &str) {
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(UNAVAILABLE) {
        skipped(&format!("no client in {language}: {said}"));
        return;
    }
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("wrote, listed and heard"));
}

/// The same over gRPC, by stubs that are generated from `/descriptors.binpb`.
async fn walks_by_grpc(fleet: &Fleet, language: &str) {
    let program = key(fleet, &format!("walks-grpc-{language}")).await;
    let descriptors = program.request(Method::GET, "/descriptors.binpb").send().await.unwrap().bytes().await.unwrap();
    let file = fleet.home.join(format!("descriptors-{language}.binpb"));
    std::fs::write(&file, descriptors).unwrap();
    let mut command = Command::new(e2e::workspace().join("scripts/clients.sh"));
    let address = fleet.unit("gateway").address.clone();
    command.arg(format!("grpc-{language}")).arg(&file).arg(address).arg(program.token().unwrap());
    assert_walked(command, language).await;
}

/// Tools that learn from reflection what there is, over each protocol.
#[test]
fn buf_curl_calls_a_method_that_it_has_never_heard_of() {
    with_fleet(|fleet, _| async {
        let program = key(fleet, "walks-buf").await;
        let address = &fleet.unit("gateway").address;
        let (grpc, web) = (&["grpc", "--http2-prior-knowledge"][..], &["grpcweb"][..]);
        for (protocol, size) in [(grpc, 1), (grpc, -1), (web, 1), (web, -1)] {
            let mut command = Command::new(e2e::workspace().join("scripts/buf.sh"));
            command.args(["curl", "--protocol"]).args(protocol);
            command.args(["--reflect-protocol", "grpc-v1", "--data"]).arg(format!("{{\"pageSize\": {size}}}"));
            command.arg("--header").arg(format!("authorization: Bearer {}", program.token().unwrap()));
            command.arg(format!("http://{address}/flotilla.todo.v1.TodoService/ListTodos"));
            let output = command.output().await.unwrap();
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if !said.contains("code") && said.contains("npm") {
                skipped(&format!("no buf: {said}"));
                return;
            }
            // Its details too, as they were given.
            let refused = said.contains("invalid_argument") && said.contains("must not be negative");
            assert_eq!((output.status.success(), refused), (size > 0, size < 0), "{protocol:?}: {said}");
        }
    });
}

/// How long generated calls go on, in seconds.
const GENERATED_FOR: &str = "45";

#[test]
fn what_is_described_is_what_is_answered() {
    with_fleet(|fleet, _| async {
        let ann = fleet.person("stranger-described").await;
        ann.sign_up("stranger-described").await;
        let ann = ann.in_tenant("stranger-described").await;
        let mut command = Command::new(e2e::workspace().join("scripts/schemathesis.sh"));
        command.arg(format!("http://{}", fleet.unit("gateway").address)).arg(ann.token().unwrap()).arg(GENERATED_FOR);
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.code() == Some(UNAVAILABLE) {
            skipped(&format!("no calls are generated: {}", String::from_utf8_lossy(&output.stderr)));
            return;
        }
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let cases = said.lines().find_map(|line| line.trim().split_once(" generated")?.0.parse::<u32>().ok());
        assert!(cases.is_some_and(|cases| cases > 500), "{said}");
    });
}

#[test]
fn a_client_generated_for_python_writes_lists_and_hears() {
    with_fleet(|fleet, _| walks(fleet, "python"));
}

#[test]
fn a_client_generated_for_typescript_writes_lists_and_hears() {
    with_fleet(|fleet, _| walks(fleet, "typescript"));
}

#[test]
fn a_grpc_client_for_python_writes_lists_and_hears() {
    with_fleet(|fleet, _| walks_by_grpc(fleet, "python"));
}

#[test]
fn a_grpc_client_for_go_writes_lists_and_hears() {
    with_fleet(|fleet, _| walks_by_grpc(fleet, "go"));
}

#[test]
fn a_grpc_client_in_rust_writes_lists_and_hears() {
    with_fleet(|fleet, _| async {
        let program = key(fleet, "walks-grpc-rust").await;
        let url = format!("http://{}", fleet.unit("gateway").address);
        walk::walk(url, program.token().unwrap().to_owned()).await.unwrap();
    });
}

#[test]
fn the_pages_are_open_and_whole_and_name_no_other_host() {
    with_fleet(|fleet, _| async {
        let stranger = fleet.stranger();
        let get = async |path: &str| {
            let page = stranger.request(Method::GET, path).send().await.unwrap();
            assert_eq!(page.status(), 200, "{path}");
            assert!(
                page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"),
                "{path}"
            );
            (page.headers()["content-type"].to_str().unwrap().to_owned(), page.text().await.unwrap())
        };
        let (media, docs) = get("/docs").await;
        assert!(media.starts_with("text/html") && !docs.contains("//"), "{docs}");
        let loads = docs.split(['"']).filter(|part| part.starts_with("/docs/"));
        for path in loads {
            get(path).await;
        }
        let (_, promises) = get("/promises").await;
        assert!(promises.contains("<td>from when on it may be gone (RFC 8594)</td>"), "{promises}");
        let (_, events) = get("/events").await;
        for event in contracts::events::all() {
            assert!(events.contains(&format!("id=\"{}\"", event.name)), "{}", event.name);
            // At the path of `dataschema`.
            let at = contracts::envelope::schema_id(event.name);
            let path = at.strip_prefix("https://flotilla.example").unwrap();
            let (_, schema) = get(path).await;
            let schema: Value = serde_json::from_str(&schema).unwrap();
            assert_eq!(schema["$id"], at);
        }
        let unknown = stranger.send(Method::GET, "/schemas/todo.exploded.v1.json", None).await;
        assert_eq!((unknown.status, unknown.code()), (404, "NO_SUCH_PATH"));
    });
}
