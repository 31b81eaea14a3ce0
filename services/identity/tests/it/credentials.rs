//! What is no credential gets no token, and a token does no more than it says.

use proto::identity::{
    DeleteApiKeyRequest, DeleteServiceAccountRequest, ExchangeTokenRequest, GetApiKeyRequest, GetMeRequest,
    ListApiKeysRequest, ListMembersRequest, Role, RotateApiKeyRequest, ServiceAccount, UpdateServiceAccountRequest,
};

use testkit::until;

use crate::harness::{ACCESS_TOKEN, API_KEY, Client, Harness, reason};

#[tokio::test]
async fn what_is_no_credential_gets_no_token() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let key = ann.create_key(Role::Member, &["todo:read"]).await.unwrap().key;
    let nobody = harness.client_with(None);
    let fleets = harness.issuer.bearer("acme", "ann");
    let fleets = fleets.trim_start_matches("Bearer ");
    let other = testkit::TestIssuer::new().person("ann", "ann@x.example");
    let flipped = format!("{}{}", &key[..key.len() - 1], if key.ends_with('0') { '1' } else { '0' });
    for (token, kind, wanted) in [
        ("", ACCESS_TOKEN, "INVALID_REQUEST"),
        ("nonsense", ACCESS_TOKEN, "INVALID_GRANT"),
        // A token of the fleet's is none of the provider's: it is not exchanged to live longer.
        (fleets, ACCESS_TOKEN, "INVALID_GRANT"),
        (&other, ACCESS_TOKEN, "INVALID_GRANT"),
        (&key, ACCESS_TOKEN, "INVALID_GRANT"),
        (&flipped, API_KEY, "INVALID_GRANT"),
        ("flk_00000000000000000000000000000000_", API_KEY, "INVALID_GRANT"),
        (&key, "urn:ietf:params:oauth:token-type:id_token", "INVALID_REQUEST"),
    ] {
        assert_eq!(reason(nobody.exchange(token, kind, "", "").await), wanted, "{kind} {token}");
    }
    for (tenant, scope, wanted) in [
        ("globex", "", "INVALID_TARGET"),
        ("No Tenant", "", "INVALID_TARGET"),
        ("", "todo:read todo:write", "INVALID_SCOPE"),
        ("", "todo\"read", "INVALID_SCOPE"),
    ] {
        assert_eq!(reason(nobody.exchange(&key, API_KEY, tenant, scope).await), wanted, "{tenant} {scope}");
    }
    assert!(nobody.exchange(&key, API_KEY, "acme", "todo:read").await.is_ok());
}

#[tokio::test]
async fn a_person_of_several_tenants_names_one_and_of_none_gets_no_token() {
    let harness = Harness::start().await;
    let (nobody, token) = (harness.client_with(None), harness.issuer.person("ann", "ann@x.example"));
    assert_eq!(reason(nobody.exchange(&token, ACCESS_TOKEN, "", "").await), "INVALID_TARGET");
    for slug in ["acme", "globex"] {
        harness.person("ann").sign_up(slug).await.unwrap();
    }
    harness.person("bob").sign_up("other").await.unwrap();
    assert_eq!(reason(nobody.exchange(&token, ACCESS_TOKEN, "", "").await), "INVALID_TARGET");
    assert_eq!(reason(nobody.exchange(&token, ACCESS_TOKEN, "other", "").await), "INVALID_TARGET");
    nobody.exchange(&token, ACCESS_TOKEN, "globex", "").await.unwrap();
}

#[tokio::test]
async fn a_revoked_key_opens_nothing_and_no_list_shows_a_key() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let once = ann.with_key("one");
    let key = once.create_key(Role::Member, &["todo:read"]).await.unwrap();
    let again = once.create_key(Role::Member, &["todo:read"]).await.unwrap();
    assert_eq!((again.id.as_str(), again.key.as_str()), (key.id.as_str(), ""), "a repeat leaves the key out");
    let list = || async {
        ann.inner.clone().list_api_keys(ann.request(ListApiKeysRequest::default())).await.unwrap().into_inner()
    };
    let listed = list().await.api_keys;
    assert_eq!((listed.len(), listed[0].key.as_str()), (1, ""));
    let request = ann.request(DeleteApiKeyRequest { id: key.id.clone() });
    ann.inner.clone().delete_api_key(request).await.unwrap();
    let refused = harness.client_with(None).exchange(&key.key, API_KEY, "", "").await;
    assert_eq!(reason(refused), "INVALID_GRANT");
    assert!(list().await.api_keys.is_empty());
    let secret = key.key.rsplit('_').next().unwrap();
    for stored in harness.events().await {
        assert!(!stored.text.contains(secret), "no event holds a key");
    }
}

#[tokio::test]
async fn public_methods_take_the_providers_tokens_and_all_others_the_fleets() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    assert_eq!(reason(ann.sign_up("globex").await), "TOKEN_INVALID");
    assert_eq!(reason(harness.client_with(None).sign_up("globex").await), "TOKEN_MISSING");
    assert_eq!(reason(harness.person("ann").invite("bob@x.example", Role::Member).await), "TOKEN_INVALID");
    let invitation = ann.invite("ann@x.example", Role::Member).await.unwrap();
    assert_eq!(reason(ann.accept(&invitation.id).await), "TOKEN_INVALID");
    assert_eq!(reason(harness.client_with(None).accept(&invitation.id).await), "TOKEN_MISSING");
    let service = proto::POOL.get_service_by_name("flotilla.identity.v1.IdentityService").unwrap();
    let public = service.methods().filter(|rpc| service::policy::Policy::of(rpc).public);
    let public: Vec<_> = public.map(|rpc| rpc.name().to_owned()).collect();
    assert_eq!(public, ["CreateTenant", "AcceptInvitation", "ExchangeToken"], "reviewed: one by one");
}

#[tokio::test]
async fn nobody_but_a_person_gives_access_and_no_more_than_its_token_has() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let user = ann.user().await;
    let key = ann.create_key(Role::Admin, &["identity:write", "identity:read"]).await.unwrap();
    let granted = harness.client_with(None).exchange(&key.key, API_KEY, "", "").await.unwrap();
    let act = serde_json::json!({"role": "owner", "act": {"sub": "planner", "kind": "agent"}});
    for program in [harness.with(&granted.access_token), harness.client_as("acme", &user, &act)] {
        assert_eq!(reason(program.create_key(Role::Viewer, &["identity:read"]).await), "PERMISSION_DENIED");
        assert_eq!(reason(program.invite("eve@x.example", Role::Viewer).await), "PERMISSION_DENIED");
        let request = program.request(DeleteApiKeyRequest { id: key.id.clone() });
        assert_eq!(reason(program.inner.clone().delete_api_key(request).await), "PERMISSION_DENIED");
    }
    let narrow = serde_json::json!({"role": "owner", "scope": "identity:write todo:read"});
    let narrow = harness.client_as("acme", &user, &narrow);
    narrow.create_key(Role::Viewer, &["todo:read"]).await.unwrap();
    assert_eq!(reason(narrow.create_key(Role::Viewer, &["todo:read", "todo:write"]).await), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn an_agent_acts_for_a_person_within_the_scopes_of_its_key_and_ends_with_it() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.owner("acme", "ann").await, harness.owner("globex", "eve").await);
    let key = ann.create_key(Role::Viewer, &["identity:read", "identity:write"]).await.unwrap();
    let foreign = eve.create_key(Role::Viewer, &["identity:read"]).await.unwrap();
    let wanted = Client::agent(&harness.issuer.person("ann", "ann@x.example"), &key.key, "triage:42");
    let nobody = harness.client_with(None);
    let exchanged = async |request: ExchangeTokenRequest| {
        Ok::<_, tonic::Status>(nobody.inner.clone().exchange_token(request).await?.into_inner())
    };
    let granted = exchanged(wanted.clone()).await.unwrap();
    assert_eq!(granted.scope, "identity:read identity:write");
    let agent = harness.with(&granted.access_token);
    let me =
        async || Ok::<_, tonic::Status>(agent.inner.clone().get_me(agent.request(GetMeRequest {})).await?.into_inner());
    let seen = me().await.unwrap();
    let actor = format!("agent:{} user:{}", key.service_account, ann.user().await);
    assert_eq!((seen.actor, seen.task, seen.role), (actor, "triage:42".to_owned(), Role::Owner.into()));
    assert_eq!(reason(agent.invite("bob@x.example", Role::Member).await), "PERMISSION_DENIED", "it gives no access");
    let change = |change: &dyn Fn(&mut ExchangeTokenRequest)| {
        let mut request = wanted.clone();
        change(&mut request);
        request
    };
    for (request, why) in [
        (change(&|it| it.scope = "todo:write".to_owned()), "INVALID_SCOPE"),
        (change(&|it| it.actor_token = foreign.key.clone()), "INVALID_TARGET"),
        (change(&|it| it.tenant = "globex".to_owned()), "INVALID_TARGET"),
        (change(&|it| it.subject_token = harness.issuer.person("eve", "eve@x.example")), "INVALID_TARGET"),
        (change(&|it| it.actor_token = "flk_x".to_owned()), "INVALID_GRANT"),
        (change(&|it| it.actor_token = granted.access_token.clone()), "INVALID_GRANT"),
        (change(&|it| it.actor_token_type = ACCESS_TOKEN.to_owned()), "INVALID_REQUEST"),
        (change(&|it| it.actor_token = String::new()), "INVALID_REQUEST"),
        (change(&|it| it.task = "two words".to_owned()), "INVALID_REQUEST"),
        (
            change(&|it| (it.subject_token, it.subject_token_type) = (key.key.clone(), API_KEY.to_owned())),
            "INVALID_REQUEST",
        ),
    ] {
        assert_eq!(reason(exchanged(request.clone()).await), why, "{request:?}");
    }
    let request = ann.request(DeleteApiKeyRequest { id: key.id.clone() });
    ann.inner.clone().delete_api_key(request).await.unwrap();
    assert_eq!(reason(exchanged(wanted.clone()).await), "INVALID_GRANT");
    until("its token is void", || async { me().await.is_err() && reason(me().await) == "TOKEN_REVOKED" }).await;
}

#[tokio::test]
async fn a_name_at_the_provider_with_control_characters_is_nobodys() {
    let harness = Harness::start().await;
    for subject in ["", "a\0b", "a\nb", &"x".repeat(256)] {
        let token = harness.issuer.person(subject, "ann@x.example");
        assert_eq!(reason(harness.client_with(None).exchange(&token, ACCESS_TOKEN, "", "").await), "INVALID_GRANT");
        assert_eq!(reason(harness.with(&token).sign_up("acme").await), "TOKEN_INVALID");
    }
}

#[tokio::test]
async fn what_a_provider_leaves_out_stays_as_it_was() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let nameless = serde_json::json!({"email": "ann@x.example", "email_verified": true});
    for claims in [&nameless, &nameless, &serde_json::json!({})] {
        let token = harness.issuer.person_with("ann", claims);
        harness.client_with(None).exchange(&token, ACCESS_TOKEN, "", "").await.unwrap();
    }
    let renamed = serde_json::json!({"email": "ann@y.example", "email_verified": true, "locale": "de-DE"});
    let token = harness.issuer.person_with("ann", &renamed);
    harness.client_with(None).exchange(&token, ACCESS_TOKEN, "", "").await.unwrap();
    // A token from before: it is as good, and says nothing new.
    let now = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()).timestamp();
    let before = serde_json::json!({"email": "old@x.example", "email_verified": true, "iat": now - 100});
    let token = harness.issuer.person_with("ann", &before);
    harness.client_with(None).exchange(&token, ACCESS_TOKEN, "", "").await.unwrap();
    let members = ann.inner.clone().list_members(ann.request(ListMembersRequest::default())).await.unwrap();
    let member = members.into_inner().members.remove(0);
    assert_eq!(
        (member.name.as_str(), member.email.as_str(), member.locale.as_str()),
        ("ann", "ann@y.example", "de-DE")
    );
    assert_eq!(member.version, 2, "what says nothing new is no change");
}

#[tokio::test]
async fn a_key_is_rotated_with_an_overlap_and_the_program_stays_the_same() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let old = ann.create_key(Role::Viewer, &["todo:read"]).await.unwrap();
    let rotate = async |id: &str, overlap: Option<i64>| {
        let overlap = overlap.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        let request = ann.request(RotateApiKeyRequest { id: id.to_owned(), overlap });
        ann.inner.clone().rotate_api_key(request).await.map(tonic::Response::into_inner)
    };
    let program = async |key: &str| {
        let granted = harness.client_with(None).exchange(key, API_KEY, "", "").await?;
        let client = harness.with(&granted.access_token);
        let refused = client.inner.clone().get_me(client.request(GetMeRequest {})).await;
        assert_eq!(reason(refused), "INSUFFICIENT_SCOPE");
        let claims = granted.access_token.split('.').nth(1).unwrap().to_owned();
        Ok::<_, tonic::Status>(claims)
    };
    let new = rotate(&old.id, None).await.unwrap();
    assert_eq!((&new.service_account, &new.scopes, &new.name), (&old.service_account, &old.scopes, &old.name));
    assert_ne!((&new.id, &new.key), (&old.id, &old.key));
    // Both open; then the newest alone.
    for key in [&old.key, &new.key] {
        program(key).await.unwrap();
    }
    let newest = rotate(&new.id, Some(0)).await.unwrap();
    assert_eq!(reason(program(&new.key).await), "INVALID_GRANT");
    program(&newest.key).await.unwrap();
    let get = ann.request(GetApiKeyRequest { id: newest.id.clone() });
    let used = ann.inner.clone().get_api_key(get).await.unwrap().into_inner();
    assert!(used.last_use_time.is_some() && newest.last_use_time.is_none());
    for overlap in [-1, 31 * 86_400, i64::MAX] {
        assert_eq!(reason(rotate(&newest.id, Some(overlap)).await), "INVALID_ARGUMENT", "{overlap}");
    }
    // Three it has; with the twentieth there is room for no more.
    for _ in 3..20 {
        ann.key_of(&old.service_account, &["todo:read"]).await.unwrap();
    }
    assert_eq!(reason(ann.key_of(&old.service_account, &["todo:read"]).await), "TOO_MANY_API_KEYS");
    assert_eq!(reason(rotate(&newest.id, None).await), "TOO_MANY_API_KEYS");
}

#[tokio::test]
async fn a_key_opens_until_it_ends_and_no_token_of_it_lives_longer() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let key = ann.create_key(Role::Viewer, &["todo:read"]).await.unwrap().key;
    let exchange = async || harness.client_with(None).exchange(&key, API_KEY, "", "").await;
    assert_eq!(exchange().await.unwrap().expires_in, 600);
    harness.sql("update api_key set expire_time = now() + interval '60 seconds'").await;
    let seconds = exchange().await.unwrap().expires_in;
    assert!((1..=60).contains(&seconds), "{seconds}");
    harness.sql("update api_key set expire_time = now() - interval '1 second'").await;
    assert_eq!(reason(exchange().await), "INVALID_GRANT");
}

#[tokio::test]
async fn a_program_that_is_let_in_no_more_has_no_key_left_and_one_with_another_role_gets_that() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let key = ann.create_key(Role::Viewer, &["identity:read"]).await.unwrap();
    let account = Some(ServiceAccount { role: Role::Member.into(), ..ServiceAccount::default() });
    let id = key.service_account.clone();
    let request = UpdateServiceAccountRequest { id: id.clone(), service_account: account, update_mask: None };
    ann.inner.clone().update_service_account(ann.request(request)).await.unwrap();
    let granted = harness.client_with(None).exchange(&key.key, API_KEY, "", "").await.unwrap();
    let program = harness.with(&granted.access_token);
    let me = program.inner.clone().get_me(program.request(GetMeRequest {})).await.unwrap().into_inner();
    assert_eq!(me.role, i32::from(Role::Member));
    let owner = Some(ServiceAccount { role: Role::Owner.into(), ..ServiceAccount::default() });
    let request = UpdateServiceAccountRequest { id: id.clone(), service_account: owner, update_mask: None };
    assert_eq!(reason(ann.inner.clone().update_service_account(ann.request(request)).await), "INVALID_ARGUMENT");
    let request = DeleteServiceAccountRequest { id: id.clone(), etag: "v1".to_owned() };
    assert_eq!(reason(ann.inner.clone().delete_service_account(ann.request(request)).await), "ETAG_MISMATCH");
    let request = DeleteServiceAccountRequest { id: id.clone(), etag: String::new() };
    ann.inner.clone().delete_service_account(ann.request(request)).await.unwrap();
    assert_eq!(reason(harness.client_with(None).exchange(&key.key, API_KEY, "", "").await), "INVALID_GRANT");
    assert_eq!(reason(ann.key_of(&id, &["todo:read"]).await), "SERVICE_ACCOUNT_NOT_FOUND");
    let last: Vec<_> =
        harness.events().await.into_iter().rev().take(2).map(|event| event.envelope.event_type).collect();
    assert_eq!(last, ["identity.service_account_deleted.v1", "identity.api_key_revoked.v1"]);
}
