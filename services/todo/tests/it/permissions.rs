//! Who may do what: by role, by scope, and by what the todo is.

use authz::{Caller, Role};
use contracts::TodoId;
use proto::todo::Todo;
use serde_json::{Value, json};
use service::filter::Filter;
use service::live::Live;
use service::members::Directory;
use service::{Call, Db, Failure, IfMatch, Outbox};
use testkit::permissions::assert_reviewed;
use todo::commands::{self, App, Error};
use todo::lists::TODOS;
use todo::permissions::{self, BY_ITSELF, MATRIX};
use todo::texts::{Labels, Notes, Title};
use todo::todo::{Change, Draft, Patch};

use crate::harness::{Client, Harness, reason};
use crate::tenancy::{call, rpcs};

#[test]
fn the_matrix_is_as_it_was_reviewed() {
    assert_reviewed(env!("CARGO_MANIFEST_DIR"), &MATRIX, &BY_ITSELF, &[]);
    assert_eq!(MATRIX.map(|(rpc, _)| rpc.to_owned()).to_vec(), rpcs(), "each RPC has its row");
}

/// The refusal of each call, by its RPC; nothing where the call succeeds.
async fn refusals(harness: &Harness, client: &Client) -> Vec<(&'static str, String)> {
    let mut refusals = Vec::new();
    // A todo of its own for each call: one may be deleted, and one must be completed before.
    let owner = harness.client("acme", "olga");
    for (rpc, _) in MATRIX {
        let todo = owner.titled("shared").await;
        if rpc == "ReopenTodo" {
            owner.complete(&todo.id, "").await.unwrap();
        }
        let result = call(client, rpc, &todo.id).await;
        refusals.push((rpc, if result.is_ok() { String::new() } else { reason(result) }));
    }
    refusals
}

#[tokio::test]
async fn each_rpc_is_denied_to_each_role_that_has_no_row_for_it() {
    let harness = Harness::start().await;
    let roles = Role::ALL.into_iter().map(Some).chain([None]);
    for role in roles {
        let claims = role.map_or(json!({}), |role| json!({"role": role.as_str()}));
        let sees = role.is_some_and(|role| permissions::GET.roles.contains(&role));
        for (name, refused) in refusals(&harness, &harness.client_as("acme", "mel", &claims)).await {
            let permission = MATRIX.iter().find(|(rpc, _)| *rpc == name).unwrap().1;
            let names_a_todo = !["CreateTodo", "ListTodos", "WatchTodos"].contains(&name);
            let wanted = match role {
                // She has not created it.
                Some(Role::Member) if name == "DeleteTodo" => "PERMISSION_DENIED",
                Some(role) if permission.roles.contains(&role) => "",
                _ if names_a_todo && !sees => "TODO_NOT_FOUND",
                _ => "PERMISSION_DENIED",
            };
            assert_eq!(refused, wanted, "{name} as {role:?}");
        }
    }
}

#[tokio::test]
async fn a_token_with_scopes_does_no_more_than_they_say() {
    let harness = Harness::start().await;
    for scope in ["todo:read", "todo:write", "todo:read todo:write other", "", "billing:read"] {
        let claims = json!({"role": "owner", "scope": scope});
        for (name, refused) in refusals(&harness, &harness.client_as("acme", "ann", &claims)).await {
            let permission = MATRIX.iter().find(|(rpc, _)| *rpc == name).unwrap().1;
            let wanted =
                if scope.split(' ').any(|scope| scope == permission.scope) { "" } else { "INSUFFICIENT_SCOPE" };
            assert_eq!(refused, wanted, "{name} with {scope:?}");
        }
    }
}

/// Calls an RPC's command as a handler does: in the process, as a service on its own behalf.
async fn command((app, live): (&App, &Live<Change>), call: &Call, rpc: &str, id: TodoId) -> Result<(), Error> {
    let draft = Draft {
        title: Title::parse("x").unwrap(),
        notes: Notes::default(),
        due_time: None,
        labels: Labels::default(),
        assignee: None,
        recurrence: None,
        follows: None,
    };
    match rpc {
        "CreateTodo" => commands::create(app, call, draft).await.map(drop),
        "GetTodo" => commands::get(app, call, id).await.map(drop),
        "ListTodos" => {
            let all = TODOS.query(Filter::All(Vec::new()), "").unwrap();
            commands::list(app, call, &all, None, 1).await.map(drop)
        }
        "WatchTodos" => commands::watch(live, call, None).map(drop),
        "UpdateTodo" => commands::update(app, call, id, &IfMatch::Any, Patch::default()).await.map(drop),
        "DeleteTodo" => commands::delete(app, call, id, &IfMatch::Any).await,
        "CompleteTodo" => commands::complete(app, call, id, &IfMatch::Any).await.map(drop),
        "ReopenTodo" => commands::reopen(app, call, id, &IfMatch::Any).await.map(drop),
        "become_due" => commands::become_due(app, call, id).await,
        "purge" => commands::purge(app, call, id, std::time::Duration::ZERO).await,
        "erase" => commands::erase(app, call, id).await.map(drop),
        "forget" => commands::forget(app, call, id, &"ann".parse().unwrap()).await.map(drop),
        other => panic!("{other}: say here how a handler calls it"),
    }
}

#[tokio::test]
async fn a_service_does_what_its_row_says_and_nobody_is_one_by_a_token() {
    let harness = Harness::start().await;
    let db = Db::lazy(&harness.database.app.clone().into(), "test", 2).unwrap();
    let app = App { db, outbox: Outbox::new(harness.app.relay.clone()), directory: Directory::default() };
    let does = (&app, &harness.app.live);
    let id = harness.client("acme", "olga").titled("shared").await.id.parse().unwrap();
    // No person does what the service does by itself, whatever their role.
    let owner = Caller {
        role: Some(Role::Owner),
        actor: contracts::Actor::new(contracts::ActorKind::User, "olga".parse().unwrap()),
        ..Caller::service("acme".parse().unwrap(), "todo".parse().unwrap())
    };
    for (name, _) in BY_ITSELF {
        let refused = command(does, &Call::of_request(owner.clone(), None), name, id).await.map_err(Failure::from);
        assert_eq!(refused.unwrap_err().reason, "PERMISSION_DENIED", "{name}");
    }
    for service in ["todo", "billing"] {
        let call = Call::of_request(Caller::service("acme".parse().unwrap(), service.parse().unwrap()), None);
        for (rpc, permission) in MATRIX.into_iter().chain(BY_ITSELF) {
            let refused = command(does, &call, rpc, id).await.map_err(Failure::from).map_err(|failure| failure.reason);
            let wanted = match rpc {
                _ if permission.services.contains(&service) => Ok(()),
                "CreateTodo" | "ListTodos" | "WatchTodos" | "become_due" | "purge" | "erase" | "forget" => {
                    Err("PERMISSION_DENIED")
                }
                _ => Err("TODO_NOT_FOUND"),
            };
            assert_eq!(refused, wanted, "{rpc} as service:{service}");
        }
        let token = harness.client_as("acme", service, &json!({"kind": "service", "role": "owner"}));
        assert_eq!(reason(token.get("x").await), "TOKEN_INVALID");
        // On behalf of somebody it may do what that person may.
        let act = json!({"role": "viewer", "act": {"sub": service, "kind": "service"}});
        let refused =
            harness.client_as("acme", "vic", &act).create(Todo { title: "x".to_owned(), ..Todo::default() }).await;
        assert_eq!(reason(refused), "PERMISSION_DENIED");
    }
}

#[tokio::test]
async fn a_member_deletes_what_it_has_created_and_nothing_else() {
    let harness = Harness::start().await;
    let member = |user: &str| harness.client_as("acme", user, &json!({"role": "member"}));
    let (mel, bob) = (member("mel"), member("bob"));
    let todo = mel.create(Todo { title: "mine".to_owned(), ..Todo::default() }).await.unwrap();
    assert_eq!(reason(bob.delete(&todo.id, "").await), "PERMISSION_DENIED");
    let program = harness.client_as("acme", "mel", &json!({"role": "member", "kind": "service_account"}));
    assert_eq!(reason(program.delete(&todo.id, "").await), "PERMISSION_DENIED", "of the same name, and another");
    assert_eq!(bob.rename(&todo.id, "ours").await.unwrap().title, "ours");
    mel.delete(&todo.id, "").await.unwrap();
    let todo = mel.titled("mine too").await;
    harness.client_as("acme", "ada", &json!({"role": "admin"})).delete(&todo.id, "").await.unwrap();
}

#[tokio::test]
async fn whoever_acts_for_somebody_may_do_what_that_one_may_and_is_named() {
    let harness = Harness::start().await;
    let act = json!({"sub": "planner", "kind": "agent", "act": {"sub": "desk", "kind": "service_account"}});
    let agent = |role: &str| harness.client_as("acme", "ann", &json!({"role": role, "act": act}));
    assert_eq!(
        reason(agent("viewer").create(Todo { title: "x".to_owned(), ..Todo::default() }).await),
        "PERMISSION_DENIED"
    );
    let todo = agent("member").titled("planned").await;
    assert_eq!(todo.created_by, "ann");
    let program = json!({"role": "member", "kind": "service_account"});
    harness.client_as("acme", "importer", &program).titled("imported").await;
    harness.client("acme", "ann").titled("by hand").await;
    let envelopes = harness.events().await.into_iter().map(|stored| stored.envelope);
    let written: Vec<(String, Value)> = envelopes
        .map(|envelope| {
            assert_eq!(
                (envelope.causationid, envelope.correlationid.is_some()),
                (None, true),
                "a request has caused it"
            );
            let data: Value = serde_json::from_str(envelope.data.get()).unwrap();
            (envelope.actor.unwrap().to_string(), data["actor"].clone())
        })
        .collect();
    assert_eq!(
        written,
        [
            ("agent:planner service_account:desk user:ann".to_owned(), json!({"kind": "user", "id": "ann"})),
            ("service_account:importer".to_owned(), json!({"kind": "service", "id": "importer"})),
            ("user:ann".to_owned(), json!({"kind": "user", "id": "ann"})),
        ]
    );
}

#[tokio::test]
async fn a_key_belongs_to_whoever_acts() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("k");
    let act = json!({"sub": "planner", "kind": "agent"});
    let agent = harness.client_as("acme", "ann", &json!({"role": "owner", "act": act})).with_key("k");
    let todo = || Todo { title: "once".to_owned(), ..Todo::default() };
    let (first, again) = (ann.create(todo()).await.unwrap(), ann.create(todo()).await.unwrap());
    let other = agent.create(todo()).await.unwrap();
    assert_eq!(first, again);
    assert_ne!(first.id, other.id, "another actor's key is another key");
}

#[tokio::test]
async fn an_act_that_the_tenant_has_marked_demands_the_sign_in_that_it_says() {
    let harness = Harness::start().await;
    let todo = harness.client("acme", "ann").titled("x").await;
    let step_up = json!({"acts": ["DeleteTodo"], "acr_values": ["mfa"], "max_age": null});
    let as_of = |acr: &str| {
        let claims = json!({"role": "owner", "acr": acr, "auth_time": 1, "step_up": step_up});
        harness.client_as("acme", "ann", &claims)
    };
    let refused = as_of("pwd").delete(&todo.id, "").await;
    assert_eq!(reason(refused), "INSUFFICIENT_USER_AUTHENTICATION");
    as_of("pwd").rename(&todo.id, "y").await.unwrap();
    as_of("mfa").delete(&todo.id, "").await.unwrap();
}
