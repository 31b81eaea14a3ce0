//! Who may do what: by role and by scope.

use authz::{Caller, Role};
use harbour::commands::{self, App, Error};
use harbour::lists::VESSELS;
use harbour::logbook::{LogbookFilter, LogbookPatch};
use harbour::permissions::{BY_ITSELF, MATRIX};
use harbour::texts::{Name, Notes};
use harbour::vessel::{VesselDraft, VesselPatch};
use serde_json::json;
use service::filter::Filter;
use service::{Call, Db, Failure, IfMatch, Outbox};
use testkit::permissions::assert_reviewed;

use crate::harness::{Client, Harness, reason};
use crate::tenancy::{call, rpcs};

#[test]
fn the_matrix_is_as_it_was_reviewed() {
    assert_reviewed(env!("CARGO_MANIFEST_DIR"), &MATRIX, &BY_ITSELF, &[]);
    assert_eq!(MATRIX.map(|(rpc, _)| rpc.to_owned()).to_vec(), rpcs(), "each RPC has its row");
}

/// The refusal of each call, by its RPC; nothing where it succeeds.
async fn refusals(harness: &Harness, client: &Client) -> Vec<(&'static str, String)> {
    let owner = harness.client("acme", "olga");
    let shared = owner.named("shared").await;
    let logbook = owner.logbook_of(&shared).await;
    let mut refusals = Vec::new();
    for (rpc, _) in MATRIX {
        // One of its own for the call that deletes it.
        let vessel = if rpc == "DeleteVessel" { owner.named("to be deleted").await } else { shared.clone() };
        let result = call(client, rpc, &vessel.id, &logbook.id).await;
        refusals.push((rpc, if result.is_ok() { String::new() } else { reason(result) }));
    }
    refusals
}

#[tokio::test]
async fn each_rpc_is_denied_to_each_role_that_has_no_row_for_it() {
    let harness = Harness::start().await;
    for role in Role::ALL.into_iter().map(Some).chain([None]) {
        let claims = role.map_or(json!({}), |role| json!({"role": role.as_str()}));
        let sees = role.is_some_and(|role| role != Role::Billing);
        for (rpc, refused) in refusals(&harness, &harness.client_as("acme", "ann", &claims)).await {
            let permission = MATRIX.iter().find(|(name, _)| *name == rpc).unwrap().1;
            let names_one = !rpc.starts_with("Create") && !rpc.starts_with("List");
            let wanted = match role {
                Some(role) if permission.roles.contains(&role) => "",
                _ if names_one && !sees && rpc.ends_with("Logbook") => "LOGBOOK_NOT_FOUND",
                _ if names_one && !sees => "VESSEL_NOT_FOUND",
                _ => "PERMISSION_DENIED",
            };
            assert_eq!(refused, wanted, "{rpc} as {role:?}");
        }
    }
}

#[tokio::test]
async fn a_token_with_scopes_does_no_more_than_they_say() {
    let harness = Harness::start().await;
    for scope in ["harbour:read", "harbour:write", "harbour:read harbour:write other", "", "todo:read"] {
        let claims = json!({"role": "owner", "scope": scope});
        for (rpc, refused) in refusals(&harness, &harness.client_as("acme", "ann", &claims)).await {
            let permission = MATRIX.iter().find(|(name, _)| *name == rpc).unwrap().1;
            let wanted =
                if scope.split(' ').any(|scope| scope == permission.scope) { "" } else { "INSUFFICIENT_SCOPE" };
            assert_eq!(refused, wanted, "{rpc} with {scope:?}");
        }
    }
}

/// Calls a command in the process, as a service on its own behalf does.
async fn command(app: &App, call: &Call, name: &str, vessel: &str, logbook: &str) -> Result<(), Error> {
    let (vessel, logbook) = (vessel.parse().unwrap(), logbook.parse().unwrap());
    let draft = VesselDraft { name: Name::parse("x").unwrap(), notes: Notes::default() };
    let any = &IfMatch::Any;
    match name {
        "CreateVessel" => commands::create_vessel(app, call, draft).await.map(drop),
        "GetVessel" => commands::get_vessel(app, call, vessel).await.map(drop),
        "ListVessels" => {
            let all = VESSELS.query(Filter::All(Vec::new()), "").unwrap();
            commands::list_vessels(app, call, &all, None, 1).await.map(drop)
        }
        "UpdateVessel" => commands::update_vessel(app, call, vessel, any, VesselPatch::default()).await.map(drop),
        "DeleteVessel" => commands::delete_vessel(app, call, vessel, any).await,
        "GetLogbook" => commands::get_logbook(app, call, logbook).await.map(drop),
        "ListLogbooks" => commands::list_logbooks(app, call, &LogbookFilter::default(), None, 1).await.map(drop),
        "UpdateLogbook" => commands::update_logbook(app, call, logbook, any, LogbookPatch::default()).await.map(drop),
        "create_logbook" => commands::create_logbook(app, call, vessel).await.map(drop),
        "delete_logbook" => commands::delete_logbook(app, call, vessel).await,
        "erase_vessel" => commands::erase_vessel(app, call, vessel, None).await.map(drop),
        "erase_logbook" => commands::erase_logbook(app, call, logbook, None).await.map(drop),
        other => panic!("{other}: say here how it is called"),
    }
}

#[tokio::test]
async fn what_the_service_does_by_itself_nobody_else_may_do() {
    let harness = Harness::start().await;
    let olga = harness.client("acme", "olga");
    let vessel = olga.named("shared").await;
    let logbook = olga.logbook_of(&vessel).await;
    let db = Db::lazy(&harness.database.app.clone().into(), "test", 2).unwrap();
    let app = App { db, outbox: Outbox::new(harness.app.relay.clone()) };
    let service = |name: &str| Caller::service("acme".parse().unwrap(), name.parse().unwrap());
    let owner = Caller {
        role: Some(Role::Owner),
        actor: contracts::Actor::new(contracts::ActorKind::User, "olga".parse().unwrap()),
        ..service("harbour")
    };
    for (name, _) in BY_ITSELF {
        for caller in [owner.clone(), service("todo")] {
            let call = Call::of_request(caller, None);
            let refused = command(&app, &call, name, &vessel.id, &logbook.id).await.map_err(Failure::from);
            assert_eq!(refused.unwrap_err().reason, "PERMISSION_DENIED", "{name}");
        }
    }
    for (name, permission) in MATRIX.into_iter().chain(BY_ITSELF) {
        let call = Call::of_request(service("harbour"), None);
        let done = command(&app, &call, name, &vessel.id, &logbook.id).await.map_err(Failure::from);
        let may = permission.services.contains(&"harbour");
        let refused = done.map_err(|failure| failure.reason).err();
        // What it erased before is gone, and an existing logbook is no denial.
        assert_eq!(!refused.is_some_and(|reason| reason == "PERMISSION_DENIED" || reason.ends_with("_NOT_FOUND")), may, "{name}: {refused:?}");
    }
}

#[tokio::test]
async fn an_act_that_the_tenant_has_marked_demands_the_sign_in_that_it_says() {
    let harness = Harness::start().await;
    let step_up = json!({"acts": ["ListVessels"], "acr_values": ["mfa"], "max_age": null});
    for (acr, allowed) in [("pwd", false), ("mfa", true)] {
        let claims = json!({"role": "owner", "acr": acr, "auth_time": 1, "step_up": step_up});
        let listed = call(&harness.client_as("acme", "olga", &claims), "ListVessels", "", "").await;
        assert_eq!(listed.is_ok(), allowed, "{acr}");
    }
}
