//! People of a real OpenID provider, and their programs, use the fleet over HTTP.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::cell::RefCell;
use std::process::Stdio;
use std::time::Instant;

use e2e::people::OpenIdProvider;
use e2e::{Answer, Caller, Fleet};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::until;
use tokio::io::{AsyncBufReadExt as _, BufReader};

fn by(fleet: &Fleet, credential: &str) -> Caller {
    Caller::of(&fleet.home, &format!("http://{}", fleet.unit("gateway").address), credential)
}

async fn token(fleet: &Fleet, form: &[(&str, &str)]) -> Answer {
    fleet.stranger().exchange(form).await
}

/// OAuth's error (RFC 6749, 5.2).
fn error(answer: &Answer) -> (u16, &str) {
    assert_eq!((answer.header("content-type"), answer.header("cache-control")), ("application/json", "no-store"));
    assert!(answer.body["error_description"].is_string(), "{answer:?}");
    (answer.status, answer.body["error"].as_str().unwrap())
}

#[tokio::test]
async fn a_person_signs_up_invites_another_and_gives_a_program_a_key_that_reads_a_todo() {
    let Some(mut provider) = OpenIdProvider::start() else { return };
    let fleet = Fleet::start_with(None, &["--provider", &provider.issuer]).await;
    let signed_in = provider.sign_in("ann").await;
    let ann = by(&fleet, &signed_in.access_token);

    // Before she is anywhere a member.
    let nowhere = ann.send(Method::GET, "/v1/todos", None).await;
    assert_eq!((nowhere.status, nowhere.code()), (403, "TENANT_UNCLEAR"));
    let acme = json!({"id": "acme", "name": "Acme Shipping", "country": "DE", "currency": "EUR"});
    let made = ann.send(Method::POST, "/v1/tenants", Some(acme.clone())).await;
    assert_eq!((made.status, &made.body["billingEmail"]), (200, &json!("ann@people.example")), "{made:?}");
    let again = ann.send(Method::POST, "/v1/tenants", Some(acme.clone())).await;
    assert_eq!((again.status, again.code()), (409, "TENANT_EXISTS"));
    let me = ann.send(Method::GET, "/v1/me", None).await.body;
    assert_eq!((&me["tenant"], &me["role"]), (&json!("acme"), &json!("OWNER")));

    // Bob comes by an invitation, whose link holds no secret: nobody else does.
    let invitation = json!({"email": "bob@people.example", "role": "MEMBER"});
    let invitation = ann.send(Method::POST, "/v1/invitations", Some(invitation)).await.body;
    let accept = format!("/v1/invitations/{}:accept", invitation["id"].as_str().unwrap());
    let eve = by(&fleet, &provider.sign_in("eve").await.access_token);
    assert_eq!(eve.send(Method::POST, &accept, None).await.code(), "INVITATION_NOT_FOUND");
    let bob = by(&fleet, &provider.sign_in("bob").await.access_token);
    let member = bob.send(Method::POST, &accept, None).await;
    assert_eq!((member.status, &member.body["role"]), (200, &json!("MEMBER")), "{member:?}");
    assert_eq!(eve.send(Method::POST, &accept, None).await.code(), "INVITATION_NOT_FOUND");
    let unverified = by(&fleet, &provider.sign_in("unverified-ann").await.access_token);
    let unverified = unverified.send(Method::POST, "/v1/tenants", Some(acme)).await;
    assert_eq!((unverified.status, unverified.code()), (400, "EMAIL_NOT_VERIFIED"));

    // What he writes, a program reads.
    let todo = bob.create(json!({"title": "Caulk the deck"})).await;
    assert_eq!(todo["createdBy"], member.body["user"]);
    let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
    let account = json!({"name": "report", "role": "VIEWER"});
    let account = ann.send(Method::POST, "/v1/serviceAccounts", Some(account)).await.body;
    let key = json!({"serviceAccount": account["id"], "name": "nightly", "scopes": ["todo:read"]});
    let key = ann.send(Method::POST, "/v1/apiKeys", Some(key)).await.body;
    let text = key["key"].as_str().unwrap().to_owned();
    let program = by(&fleet, &text);
    assert_eq!(program.send(Method::GET, &path, None).await.body, todo);
    for (method, path) in [(Method::DELETE, path.as_str()), (Method::GET, "/v1/members")] {
        let refused = program.send(method, path, None).await;
        assert_eq!((refused.status, refused.code()), (403, "INSUFFICIENT_SCOPE"));
    }
    assert_eq!(bob.send(Method::POST, "/v1/apiKeys", Some(json!({"name": "x"}))).await.status, 400);
    let last = text.chars().last().unwrap();
    let guessed = text.strip_suffix(last).unwrap().to_owned() + if last == '0' { "1" } else { "0" };
    let refused = by(&fleet, &guessed).send(Method::GET, &path, None).await;
    assert_eq!((refused.status, refused.code()), (401, "TOKEN_INVALID"));
    assert!(refused.header("www-authenticate").contains("Bearer"), "{refused:?}");

    // What the fleet takes from a provider is an access token, and nothing else.
    let id_token = by(&fleet, &signed_in.id_token).send(Method::GET, "/v1/me", None).await;
    assert_eq!((id_token.status, id_token.code()), (401, "TOKEN_INVALID"));

    what_is_taken_away_is_gone_within_seconds(&fleet, (&ann, &bob), (&account, &key)).await;
    exchanges_over_http(&fleet, &text, &signed_in.access_token).await;
    marked_acts_demand_a_second_factor(&fleet, &provider).await;
    keys_rotate(&fleet, &mut provider, &signed_in).await;

    // Everything that happened is in the stream of identity, in order.
    let tail =
        ["events", "tail", "--service", "identity", "--tenant", "acme", "--from-start", "--count", "7", "--json"];
    let tail = String::from_utf8(fleet.run(&tail).await.stdout).unwrap();
    for part in ["identity.tenant_created.v1", "identity.member_added.v1", "identity.api_key_created.v1"] {
        assert!(tail.contains(part), "{tail}");
    }
    let secret = text.rsplit('_').next().unwrap();
    assert!(!tail.contains(secret), "no event holds a key");
    the_provider_goes_away(&fleet, provider).await;
    fleet.stop().await;
}

/// Whoever is signed in goes on, as long as identity has the provider's keys. Programs need none of it.
async fn the_provider_goes_away(fleet: &Fleet, provider: OpenIdProvider) {
    let signed_in = provider.sign_in("ann").await.access_token;
    let (kind, key_kind) = ("urn:ietf:params:oauth:token-type:access_token", "urn:flotilla:token-type:api-key");
    let exchanged = async |credential: &str, kind: &str| {
        token(fleet, &[("subject_token", credential), ("subject_token_type", kind), ("tenant", "acme")]).await.status
    };
    let ann = by(fleet, &signed_in);
    let account = json!({"name": "goes on", "role": "VIEWER"});
    let account = ann.send(Method::POST, "/v1/serviceAccounts", Some(account)).await.body;
    let key = json!({"serviceAccount": account["id"], "name": "nightly", "scopes": ["todo:read"]});
    let key = ann.send(Method::POST, "/v1/apiKeys", Some(key)).await.body["key"].as_str().unwrap().to_owned();
    drop(provider);
    assert_eq!((exchanged(&signed_in, kind).await, exchanged(&key, key_kind).await), (200, 200));
    fleet.kill("identity").await;
    assert_eq!((exchanged(&signed_in, kind).await, exchanged(&key, key_kind).await), (503, 200));
}

async fn exchanges_over_http(fleet: &Fleet, key: &str, access_token: &str) {
    let (of_key, of_person) = (
        ("subject_token_type", "urn:flotilla:token-type:api-key"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
    );
    let granted = token(fleet, &[of_key, ("subject_token", key)]).await;
    assert_eq!((granted.status, granted.header("cache-control")), (200, "no-store"), "{granted:?}");
    let text = |name: &str| granted.body[name].as_str().unwrap_or_default();
    assert_eq!((text("token_type"), text("scope")), ("Bearer", "todo:read"));
    assert_eq!(granted.body["expires_in"], 600);
    assert_eq!(by(fleet, text("access_token")).send(Method::GET, "/v1/todos", None).await.status, 200);
    // It lives no longer than what it was exchanged for: the provider's token has less than 300 seconds.
    let person = token(fleet, &[of_person, ("subject_token", access_token), ("tenant", "acme")]).await;
    assert!(person.body["expires_in"].as_i64().unwrap() <= 300, "{person:?}");
    // A token of the fleet's is not exchanged again.
    let again = [of_person, ("subject_token", text("access_token"))];
    for (form, wanted) in [
        (&again[..], "invalid_grant"),
        (&[of_key, ("subject_token", "flk_x")][..], "invalid_grant"),
        (&[of_key, ("subject_token", key), ("tenant", "globex")][..], "invalid_target"),
        (&[of_key, ("subject_token", key), ("scope", "todo:write")][..], "invalid_scope"),
        (&[of_key][..], "invalid_request"),
        (&[("subject_token", key)][..], "invalid_request"),
        (&[of_key, of_key, ("subject_token", key)][..], "invalid_request"),
    ] {
        assert_eq!(error(&token(fleet, form).await), (400, wanted), "{form:?}");
    }
    let stranger = fleet.stranger();
    let json = stranger.send(Method::POST, "/v1/token", Some(json!({"grant_type": "x"}))).await;
    assert_eq!(error(&json), (415, "invalid_request"));
    let other = stranger.request(Method::POST, "/v1/token").form(&[("grant_type", "password")]).send().await.unwrap();
    assert_eq!(error(&Answer::of(other).await), (400, "unsupported_grant_type"));
}

/// Tokens live for minutes; what their holders may do ends with the change, also for tokens that are in hand.
async fn what_is_taken_away_is_gone_within_seconds(
    fleet: &Fleet,
    (ann, bob): (&Caller, &Caller),
    (account, key): (&Value, &Value),
) {
    let (writes, reads) = (json!({"title": "Sound the well"}), "/v1/todos");
    let may = async |caller: &Caller| caller.send(Method::POST, reads, Some(writes.clone())).await.status;
    let members = ann.send(Method::GET, "/v1/members", None).await.body["members"].clone();
    let bobs = members.as_array().unwrap().iter().find(|member| member["email"] == "bob@people.example").unwrap();
    let bobs = format!("/v1/members/{}", bobs["id"].as_str().unwrap());
    // A token that he exchanged himself, beside the one that the gateway has for him.
    let of_person = ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token");
    let own = token(fleet, &[of_person, ("subject_token", bob.token().unwrap())]).await;
    let own = by(fleet, own.body["access_token"].as_str().unwrap());
    for caller in [bob, &own] {
        until("he writes", || async { may(caller).await == 200 }).await;
    }
    let becomes = async |role: &str| ann.send(Method::PATCH, &bobs, Some(json!({"role": role}))).await.status;
    until("he is a viewer", || async { becomes("VIEWER").await == 200 }).await;
    let started = Instant::now();
    // The gateway exchanges his provider's token again.
    until("he writes no more", || async { may(bob).await == 403 }).await;
    until("the token that he has is void", || async {
        own.send(Method::GET, reads, None).await.body["code"] == "TOKEN_REVOKED"
    })
    .await;
    println!("a role that was taken away: its token is void after {:?}", started.elapsed());
    // Search, which has no database, knows as well.
    until("search refuses it", || async {
        own.send(Method::GET, "/v1/todos:search?query=well", None).await.body["code"] == "TOKEN_REVOKED"
    })
    .await;
    until("he is a member", || async { becomes("MEMBER").await == 200 }).await;
    until("he writes again", || async { may(bob).await == 200 }).await;

    let second = json!({"serviceAccount": account["id"], "name": "second", "scopes": ["todo:read"]});
    let second = ann.send(Method::POST, "/v1/apiKeys", Some(second)).await.body;
    let program = by(fleet, second["key"].as_str().unwrap());
    until("it opens", || async { program.send(Method::GET, reads, None).await.status == 200 }).await;
    let path = format!("/v1/apiKeys/{}", second["id"].as_str().unwrap());
    assert_eq!(ann.send(Method::DELETE, &path, None).await.status, 200);
    until("its key opens nothing", || async {
        program.send(Method::GET, reads, None).await.body["code"] == "TOKEN_INVALID"
    })
    .await;
    // Its first key goes on.
    let first = by(fleet, key["key"].as_str().unwrap());
    until("it goes on", || async { first.send(Method::GET, reads, None).await.status == 200 }).await;

    assert_eq!(ann.send(Method::DELETE, &bobs, None).await.status, 200);
    until("he is out", || async { bob.send(Method::GET, reads, None).await.body["code"] == "TENANT_UNCLEAR" }).await;
}

/// The token that a person has who confirms elsewhere what the terminal shows.
async fn signed_in_by_a_terminal(fleet: &Fleet, provider: &OpenIdProvider, name: &str, args: &[&str]) -> String {
    let mut login = fleet.command(&[&["login"], args].concat());
    let mut login = login.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(login.stderr.take().unwrap()).lines();
    let link = said.next_line().await.unwrap().unwrap();
    provider.confirm(link.strip_prefix("Open ").unwrap_or_else(|| panic!("it says: {link}")), name).await;
    let output = login.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{output:?} {:?}", said.next_line().await);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_fleet_runs_a_real_provider_where_a_person_signs_in_by_a_terminal() {
    if !OpenIdProvider::is_there() {
        return;
    }
    let fleet = Fleet::start_with(None, &["--oidc"]).await;
    let provider = OpenIdProvider::at(fleet.unit("provider").url.as_deref().unwrap());
    let zoe = by(&fleet, &signed_in_by_a_terminal(&fleet, &provider, "zoe", &[]).await);
    zoe.sign_up("initech").await;
    let zoe = by(&fleet, &signed_in_by_a_terminal(&fleet, &provider, "zoe", &["--tenant", "initech"]).await);
    zoe.create(json!({"title": "Box the compass"})).await;
    // The demo's people sign in there.
    let demo = fleet.run(&["demo"]).await;
    assert!(demo.status.success(), "{demo:?}");
    let acme = by(&fleet, &signed_in_by_a_terminal(&fleet, &provider, "bob", &["--tenant", "acme"]).await);
    assert_eq!(acme.send(Method::GET, "/v1/me", None).await.body["role"], "MEMBER");
    let refused = fleet.run(&["login", "--provider", "http://127.0.0.1:1"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("asking the provider what it is"), "{refused:?}");
    fleet.stop().await;
}

/// The tenant marks an act; whoever has a password alone gets the challenge, signs in as it demands, and acts (RFC 9470).
async fn marked_acts_demand_a_second_factor(fleet: &Fleet, provider: &OpenIdProvider) {
    const MFA: &str = "urn:flotilla:acr:mfa";
    let ann = by(fleet, &provider.sign_in("ann").await.access_token);
    let todo = ann.create(json!({"title": "scuttle it"})).await;
    let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
    let marked = json!({"stepUp": {"acts": ["DeleteTodo"], "acrValues": [MFA], "maxAge": "3600s"}});
    let refused = ann.send(Method::PATCH, "/v1/tenant", Some(marked.clone())).await;
    assert_eq!((refused.status, refused.code()), (401, "INSUFFICIENT_USER_AUTHENTICATION"));
    let stronger = by(fleet, &provider.sign_in_by("ann", MFA).await.access_token);
    let tenant = stronger.send(Method::PATCH, "/v1/tenant", Some(marked.clone())).await;
    assert_eq!((tenant.status, &tenant.body["stepUp"]), (200, &marked["stepUp"]), "{tenant:?}");
    // What tokens in hand do not say, the next ones do.
    let ann = by(fleet, &provider.sign_in("ann").await.access_token);
    let refused = ann.send(Method::DELETE, &path, None).await;
    assert_eq!((refused.status, refused.code()), (401, "INSUFFICIENT_USER_AUTHENTICATION"));
    assert_eq!(
        refused.header("www-authenticate"),
        format!(r#"Bearer error="insufficient_user_authentication", acr_values="{MFA}", max_age="3600""#)
    );
    assert_eq!(ann.send(Method::GET, &path, None).await.status, 200);
    let args = ["--provider", &provider.issuer, "--tenant", "acme", "--acr", MFA, "--max-age", "3600"];
    let stronger = by(fleet, &signed_in_by_a_terminal(fleet, provider, "ann", &args).await);
    assert_eq!(stronger.send(Method::DELETE, &path, None).await.status, 200);
    let none = stronger.send(Method::PATCH, "/v1/tenant?updateMask=stepUp", Some(json!({}))).await;
    assert_eq!((none.status, &none.body["stepUp"]), (200, &json!(null)), "{none:?}");
}

/// Whoever signs in by a new key is known, and whoever did by an old one until the provider forgets it.
async fn keys_rotate(fleet: &Fleet, provider: &mut OpenIdProvider, before: &devstack::sign_in::SignedIn) {
    let form = |token: String| {
        let kind = "urn:ietf:params:oauth:token-type:access_token".to_owned();
        [("subject_token_type", kind), ("subject_token", token)]
    };
    let granted = async |token: &str| {
        let form = form(token.to_owned());
        self::token(fleet, &form.each_ref().map(|(name, value)| (*name, value.as_str()))).await.status == 200
    };
    // Under load: whoever signed in before is known at each moment, until the rate ends it.
    let statuses = RefCell::new(Vec::new());
    let load = async {
        loop {
            let form = form(before.access_token.clone());
            let form = form.each_ref().map(|(name, value)| (*name, value.as_str()));
            let status = self::token(fleet, &form).await.status;
            statuses.borrow_mut().push(status);
        }
    };
    let rotated = async {
        provider.rotate();
        let after = provider.refresh(before).await;
        until("the new key is known", || async { granted(&after.access_token).await }).await;
        after
    };
    let after = tokio::select! { after = rotated => after, () = load => unreachable!("it goes on") };
    let statuses = statuses.into_inner();
    assert!(statuses.contains(&200) && statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    until("the rate lets it in", || async { granted(&before.access_token).await }).await;
    provider.forget();
    provider.rotate();
    let newest = provider.refresh(&after).await;
    until("the newest key is known", || async { granted(&newest.access_token).await }).await;
    until("its key is forgotten", || async {
        let form = form(before.access_token.clone());
        let answer = self::token(fleet, &form.each_ref().map(|(name, value)| (*name, value.as_str()))).await;
        answer.status == 400 && answer.body["error"] == "invalid_grant"
    })
    .await;
}
