//! Who may do what: by role and by scope.

use authz::{Caller, Role};
use contracts::events::identity::TenantStatus;
use contracts::{Actor, ActorKind};
use identity::commands::{self, App, Error};
use identity::permissions::{BY_ITSELF, MATRIX};
use identity::tenant::TenantDraft;
use identity::texts::{Country, Currency, Name, TimeZone};
use identity::{
    commands_adoption, commands_groups, commands_invitations, commands_operators, commands_programs, commands_tenant,
};
use serde_json::json;
use service::{Call, Db, Failure, Outbox};
use testkit::permissions::assert_reviewed;

use crate::carried::carrying;
use crate::harness::{API_KEY, Client, Harness, reason};
use crate::tenancy::{Ids, call, furnished, public, rpcs};

#[test]
fn the_matrix_is_as_it_was_reviewed() {
    assert_reviewed(env!("CARGO_MANIFEST_DIR"), &MATRIX, &BY_ITSELF, &public());
    assert_eq!(MATRIX.map(|(rpc, _)| rpc.to_owned()).to_vec(), rpcs(), "each RPC has its row");
}

/// The refusal of each call, by its RPC; nothing where it succeeds.
async fn refusals(harness: &Harness, owner: &Client, client: &Client) -> Vec<(&'static str, String)> {
    let ids = furnished(harness, owner, "acme").await;
    let mut refusals = Vec::new();
    for (rpc, _) in MATRIX {
        let result = call(client, rpc, &ids).await;
        refusals.push((rpc, if result.is_ok() { String::new() } else { reason(result) }));
    }
    refusals
}

/// The reason for which one is not found that a call names.
fn not_found(rpc: &str) -> Option<&'static str> {
    let named = !rpc.starts_with("Create") && !rpc.starts_with("List");
    let kinds = [
        ("Invitation", "INVITATION_NOT_FOUND"),
        ("ServiceAccount", "SERVICE_ACCOUNT_NOT_FOUND"),
        ("ApiKey", "API_KEY_NOT_FOUND"),
    ];
    kinds.into_iter().find(|(kind, _)| named && rpc.ends_with(kind)).map(|(_, reason)| reason)
}

#[tokio::test]
async fn each_rpc_is_denied_to_each_role_that_has_no_row_for_it() {
    let harness = Harness::start().await;
    let owner = harness.owner("acme", "ann").await;
    for (role, given) in Role::ALL.into_iter().map(Some).chain([None]).zip([1, 2, 3, 4, 5, 0]) {
        let client = match proto::identity::Role::try_from(given).unwrap() {
            proto::identity::Role::Unspecified => harness.client_as("acme", "mel", &json!({})),
            given => harness.member(&owner, "acme", (&format!("mel-{given:?}").to_lowercase(), given)).await.1,
        };
        for (rpc, refused) in refusals(&harness, &owner, &client).await {
            let permission = MATRIX.iter().find(|(name, _)| *name == rpc).unwrap().1;
            let wanted = match role {
                // She is not the one, and whoever is no admin only leaves.
                Some(Role::Billing | Role::Member | Role::Viewer) if rpc == "DeleteMember" => "PERMISSION_DENIED",
                Some(role) if permission.roles.contains(&role) => "",
                None if ["GetGroup", "UpdateGroup", "DeleteGroup"].contains(&rpc) => "GROUP_NOT_FOUND",
                None if ["GetMember", "UpdateMember", "DeleteMember"].contains(&rpc) => "MEMBER_NOT_FOUND",
                _ => not_found(rpc).unwrap_or("PERMISSION_DENIED"),
            };
            assert_eq!(refused, wanted, "{rpc} as {role:?}");
        }
    }
}

#[tokio::test]
async fn a_token_with_scopes_does_no_more_than_they_say() {
    let harness = Harness::start().await;
    let owner = harness.owner("acme", "ann").await;
    let ann = owner.user().await;
    for scope in ["identity:read", "identity:write", "identity:read identity:write other", "", "todo:read"] {
        let claims = json!({"role": "owner", "scope": scope});
        for (rpc, refused) in refusals(&harness, &owner, &harness.client_as("acme", &ann, &claims)).await {
            let permission = MATRIX.iter().find(|(name, _)| *name == rpc).unwrap().1;
            let wanted = match rpc {
                // It asks for a scope that her token has not.
                "CreateApiKey" | "RotateApiKey" if scope.contains("identity:write") => "INVALID_ARGUMENT",
                _ if scope.split(' ').any(|scope| scope == permission.scope) => "",
                _ => "INSUFFICIENT_SCOPE",
            };
            assert_eq!(refused, wanted, "{rpc} with {scope:?}");
        }
    }
}

#[tokio::test]
async fn no_program_no_agent_and_no_service_gives_or_takes_access_whatever_its_role_is() {
    let harness = Harness::start().await;
    let owner = harness.owner("acme", "ann").await;
    let key = owner.create_key(proto::identity::Role::Admin, &["identity:read", "identity:write"]).await.unwrap().key;
    let nobody = harness.client_with(None);
    let program = nobody.exchange(&key, API_KEY, "", "").await.unwrap().access_token;
    let agent = Client::agent(&harness.issuer.person("ann", "ann@x.example"), &key, "");
    let agent = nobody.exchange_by(agent).await.unwrap().access_token;
    let service = nobody.exchange_by(carrying(&harness, &owner.token())).await.unwrap().access_token;
    for (who, token) in [("a program", program), ("an agent", agent), ("a service", service)] {
        for (rpc, refused) in refusals(&harness, &owner, &harness.with(&token)).await {
            let wanted = if rpc.starts_with("Get") || rpc.starts_with("List") { "" } else { "PERMISSION_DENIED" };
            assert_eq!(refused, wanted, "{rpc} by {who}");
        }
    }
}

fn draft() -> TenantDraft {
    TenantDraft {
        name: Name::parse("acme").unwrap(),
        time_zone: TimeZone::UTC,
        country: Country::parse("DE").unwrap(),
        currency: Currency::parse("EUR").unwrap(),
        billing_email: None,
    }
}

async fn by_itself(app: &App, call: &Call, name: &str, ids: &Ids) -> Result<bool, Error> {
    match name {
        "see" => commands_operators::tenant(app, call).await.map(|tenant| tenant.is_some()),
        "set_status" => commands_operators::set_status(app, call, TenantStatus::Suspended).await.map(|_| true),
        "end_step_up" => commands_operators::end_step_up(app, call).await.map(|_| true),
        "republish" => commands_operators::republish(app, call).await.map(|members| members > 0),
        "erase_tenant" => commands_tenant::erase_tenant(app, call, None).await,
        "erase_member" => commands::erase_member(app, call, ids.member.parse().unwrap(), None).await,
        "erase_invitation" => {
            commands_invitations::erase_invitation(app, call, ids.invitation.parse().unwrap(), None).await
        }
        "erase_group" => commands_groups::erase_group(app, call, ids.group.parse().unwrap(), None).await,
        "erase_service_account" => {
            commands_programs::erase_service_account(app, call, ids.account.parse().unwrap(), None).await
        }
        "erase_api_key" => commands_programs::erase_api_key(app, call, ids.key.parse().unwrap(), None).await,
        "adopt" => commands_adoption::adopt(app, call, draft(), None).await.map(|adopted| adopted.is_some()),
        "admit" => {
            let bob = "bob".parse().unwrap();
            commands_adoption::admit(app, call, ("https://issuer.example", &bob), Role::Viewer).await.map(|_| true)
        }
        other => panic!("{other}: say here how it is called"),
    }
}

#[tokio::test]
async fn what_the_service_does_by_itself_nobody_else_may_do() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let ids = furnished(&harness, &ann, "acme").await;
    let db = Db::lazy(&harness.database.app.clone().into(), "test", 2).unwrap();
    let app = App { db, outbox: Outbox::new(harness.app.relay.clone()) };
    let service = |name: &str| Caller::service("acme".parse().unwrap(), name.parse().unwrap());
    let owner = Caller {
        role: Some(Role::Owner),
        actor: Actor::new(ActorKind::User, "ann".parse().unwrap()),
        ..service("identity")
    };
    for (name, _) in BY_ITSELF {
        for caller in [owner.clone(), service("todo")] {
            let refused = by_itself(&app, &Call::of_request(caller, None), name, &ids).await.map_err(Failure::from);
            assert_eq!(refused.unwrap_err().reason, "PERMISSION_DENIED", "{name}");
        }
    }
    // The tenant is erased last.
    for (name, _) in BY_ITSELF.into_iter().rev() {
        let call = Call::of_request(service("identity"), None);
        assert!(by_itself(&app, &call, name, &ids).await.map_err(Failure::from).unwrap(), "{name}");
    }
}
