//! What somebody tries who wants more than a token says, through the public API: it gets nothing, and breaks nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use devstack::StackDir;
use devstack::issuer::{ISSUER, Issuer};
use e2e::{Answer, Caller};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::http::routes;
use crate::with_fleet;

/// How many requests each of several attackers goes on for, once it should be refused.
const GOES_ON: usize = 3;

fn decoded(part: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn encoded(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// Tokens that somebody makes who has one of tenant `a`, the public keys, and keys of its own.
fn forged(home: &StackDir, token: &str) -> Vec<(&'static str, String)> {
    let parts: Vec<&str> = token.split('.').collect();
    let [head, body, signature] = parts[..] else { unreachable!("a JWT has three parts") };
    let (header, claims) = (decoded(head), decoded(body));
    let (issuer, people) = (Issuer::open(home).unwrap(), Issuer::of_people(home).unwrap());
    let changed = |claim: &str, value: Value| {
        let mut claims = claims.clone();
        claims[claim] = value;
        format!("{head}.{}.{signature}", encoded(&claims))
    };
    let with_header = |header: &Value, signature: &str| format!("{}.{body}.{signature}", encoded(header));
    let mut none = header.clone();
    none["alg"] = "none".into();
    let public = serde_json::to_value(issuer.jwks()).unwrap();
    let public = public["keys"][0]["x"].as_str().unwrap().to_owned();
    let mut shared = Header::new(Algorithm::HS256);
    (shared.typ, shared.kid) = (Some("at+jwt".to_owned()), header["kid"].as_str().map(ToOwned::to_owned));
    let by_secret = |secret: &[u8]| jsonwebtoken::encode(&shared, &claims, &EncodingKey::from_secret(secret)).unwrap();
    let minutes = TimeDelta::minutes(10);
    let by_the_people_s = json!({"iss": ISSUER, "aud": "flotilla", "tenant": "attacks-b", "role": "owner"});
    let by_the_people_s = people.person_token("eve", &by_the_people_s, minutes).unwrap();
    let claimed = |more: Value, lifetime| issuer.token_with("attacks-a", "ann", &more, lifetime).unwrap();
    vec![
        ("nothing", String::new()),
        ("nonsense", "nonsense".to_owned()),
        ("no signature", format!("{head}.{body}.")),
        ("two parts", format!("{head}.{body}")),
        ("alg none", with_header(&none, "")),
        ("alg none with a signature", with_header(&none, signature)),
        ("HS256 by the public key", by_secret(&URL_SAFE_NO_PAD.decode(&public).unwrap())),
        ("HS256 by its text", by_secret(public.as_bytes())),
        ("another's key", by_the_people_s.clone()),
        ("another's key under this id", format!("{head}.{}", by_the_people_s.split_once('.').unwrap().1)),
        ("another tenant", changed("tenant", "attacks-b".into())),
        ("another role", changed("role", "admin".into())),
        ("a later end", changed("exp", json!(claims["exp"].as_i64().unwrap() + 600))),
        ("a forged act", changed("act", json!({"sub": "todo", "kind": "service"}))),
        ("expired", claimed(json!({"role": "owner"}), -minutes)),
        ("another audience", claimed(json!({"role": "owner", "aud": "another"}), minutes)),
        ("another issuer", claimed(json!({"role": "owner", "iss": "https://another.example"}), minutes)),
        ("a service of itself", claimed(json!({"kind": "service", "sub": "todo", "role": "owner"}), minutes)),
        ("a chain without end", claimed(json!({"role": "owner", "act": endless(9)}), minutes)),
        ("an operator's", issuer.operator_token("olga", authz::OperatorRole::Operator, minutes).unwrap()),
    ]
}

/// An actor for an actor, so many times.
fn endless(times: usize) -> Value {
    (0..times).fold(json!({"sub": "x", "kind": "agent"}), |act, _| json!({"sub": "x", "kind": "agent", "act": act}))
}

#[test]
fn no_forged_token_opens_anything_and_none_is_exchanged_for_more() {
    with_fleet(|fleet, _| async {
        let (ann, eve) = (fleet.person("attacks-ann").await, fleet.person("attacks-eve").await);
        ann.sign_up("attacks-a").await;
        eve.sign_up("attacks-b").await;
        let person = ann.token().unwrap().to_owned();
        let ann = ann.in_tenant("attacks-a").await;
        let token = ann.token().unwrap().to_owned();
        let home = StackDir::open(&fleet.home).unwrap();
        for (what, forged) in forged(&home, &token) {
            let forger = ann.with_token(&forged);
            for (method, path, body) in [
                (Method::GET, "/v1/todos", None),
                (Method::POST, "/v1/todos", Some(json!({"title": "x"}))),
                (Method::GET, "/v1/me", None),
                (Method::POST, "/v1/invitations", Some(json!({"email": "x@x.example", "role": "OWNER"}))),
                (Method::GET, "/v1/todos:search", None),
            ] {
                let answer = forger.send(method.clone(), path, body).await;
                assert_eq!(answer.status, 401, "{what}: {method} {path}: {answer:?}");
            }
            for kind in ["urn:ietf:params:oauth:token-type:access_token", "urn:flotilla:token-type:api-key"] {
                let form = [("subject_token", forged.as_str()), ("subject_token_type", kind)];
                let answer = ann.exchange(&form).await;
                assert_eq!(answer.status, 400, "{what} as {kind}: {answer:?}");
            }
        }
        // Keys that she makes up of hers and another tenant's.
        let made = async |by: &Caller| {
            let account = json!({"name": "x", "role": "VIEWER"});
            let account = by.send(Method::POST, "/v1/serviceAccounts", Some(account)).await.body["id"].clone();
            let key = json!({"serviceAccount": account, "name": "x", "scopes": ["todo:read"]});
            by.send(Method::POST, "/v1/apiKeys", Some(key)).await.body["key"].as_str().unwrap().to_owned()
        };
        let (own, others) = (made(&ann).await, made(&eve).await);
        let (id, secret) = (others.rsplit_once('_').unwrap().0, own.rsplit_once('_').unwrap().1);
        let crossed = format!("{id}_{secret}");
        for key in [&crossed, &own[..own.len() - 1], &format!("{own}0"), &own.to_uppercase(), "flk_", "flk__"] {
            assert_eq!(ann.with_token(key).send(Method::GET, "/v1/todos", None).await.status, 401, "{key}");
            let form = [("subject_token", key), ("subject_token_type", "urn:flotilla:token-type:api-key")];
            assert_eq!(ann.exchange(&form).await.status, 400, "{key}");
            let agent = [("actor_token", key), ("actor_token_type", "urn:flotilla:token-type:api-key")];
            assert_eq!(ann.exchange(&[&good_of(&person)[..], &agent].concat()).await.status, 400, "{key}");
        }
        // A good one, to live longer, for more scopes, for another tenant, on behalf of another.
        let (access, good) = ("urn:ietf:params:oauth:token-type:access_token", good_of(&token));
        for more in [
            &[][..],
            &[("scope", "todo:read todo:write")],
            &[("tenant", "attacks-b")],
            &[("actor_token", token.as_str()), ("actor_token_type", access)],
            &[("actor_token", token.as_str()), ("actor_token_type", "urn:ietf:params:oauth:token-type:jwt")],
            &[("actor_token", "flk_x"), ("actor_token_type", "urn:flotilla:token-type:api-key")],
        ] {
            let answer = ann.exchange(&[&good[..], more].concat()).await;
            assert_eq!(answer.status, 400, "{more:?}: {answer:?}");
        }
        assert_eq!(ann.send(Method::GET, "/v1/me", None).await.status, 200);
    });
}

/// A token as what is exchanged.
fn good_of(token: &str) -> [(&'static str, &str); 2] {
    [("subject_token", token), ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token")]
}

/// The members of a tenant, by user, each with the role.
async fn roles(owner: &Caller) -> Vec<(String, String)> {
    let members = owner.send(Method::GET, "/v1/members", None).await.body["members"].clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut all: Vec<_> = members.as_array().unwrap().iter().map(|it| (text(&it["user"]), text(&it["role"]))).collect();
    all.sort();
    all
}

#[test]
fn no_role_makes_more_of_itself_by_any_route() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("attacks-roles", "ann").await;
        let mut attackers = Vec::new();
        for role in ["admin", "billing", "member", "viewer"] {
            attackers.push((role, fleet.caller_as("attacks-roles", role, &["--role", role]).await));
        }
        let before = roles(&ann).await;
        assert_eq!(before.len(), 5, "{before:?}");
        let members = ann.send(Method::GET, "/v1/members", None).await.body["members"].clone();
        let id = |user: &str| {
            let found = members.as_array().unwrap().iter().find(|member| member["user"] == user).unwrap();
            found["id"].as_str().unwrap().to_owned()
        };
        // What there is of her: they try what is there, and not what is not.
        let made = async |path: &str, body: Value| ann.send(Method::POST, path, Some(body)).await.body;
        let account = made("/v1/serviceAccounts", json!({"name": "x", "role": "ADMIN"})).await["id"].clone();
        let scopes = ["identity:read", "identity:write", "todo:read", "todo:write"];
        let key = made("/v1/apiKeys", json!({"serviceAccount": account, "name": "x", "scopes": scopes})).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let group = made("/v1/groups", json!({"name": "x"})).await["id"].clone();
        let invitation = made("/v1/invitations", json!({"email": "k@x.example", "role": "VIEWER"})).await["id"].clone();
        let furnished = [
            ("/v1/serviceAccounts/", text(&account)),
            ("/v1/apiKeys/", text(&key["id"])),
            ("/v1/groups/", text(&group)),
            ("/v1/invitations/", text(&invitation)),
        ];
        attackers.push(("admin", ann.with_token(&text(&key["key"]))));
        let agent = fleet.caller_as("attacks-roles", "ann", &["--agent", "planner"]).await;
        attackers.push(("owner", agent));
        for (role, attacker) in &attackers {
            let is_program = role == &"owner" || attacker.token().is_some_and(|token| token.starts_with("flk_"));
            let is_admin = role == &"admin" && !is_program;
            for (method, path) in routes("{id}") {
                let whom = match furnished.iter().find(|(of, _)| path.starts_with(of)) {
                    // What there is must stay for the others.
                    Some(_) if method == Method::DELETE && is_admin => continue,
                    Some((_, id)) => id.clone(),
                    // Everybody may leave: whom they try to take out is the owner.
                    None if method == Method::DELETE || role == &"owner" => id("ann"),
                    None => id(role),
                };
                // What such a route takes, and more than its sender has.
                let (body, is_more) = match path.as_str() {
                    "/v1/tenant" => (json!({"stepUp": {"acts": ["GetMe"], "maxAge": "60s"}}), true),
                    "/v1/members/{id}" => (json!({"role": "OWNER"}), true),
                    "/v1/invitations" => (json!({"email": "x@x.example", "role": "OWNER"}), true),
                    "/v1/serviceAccounts" => (json!({"name": "x", "role": "ADMIN"}), false),
                    "/v1/serviceAccounts/{id}" => (json!({"role": "ADMIN"}), false),
                    "/v1/apiKeys" => {
                        (json!({"serviceAccount": account, "name": "x", "scopes": ["identity:write"]}), false)
                    }
                    "/v1/groups" => (json!({"name": "x", "members": [id("ann")]}), false),
                    "/v1/groups/{id}" => (json!({"members": [id("ann")]}), false),
                    "/v1/todos" | "/v1/todos/{id}" => (json!({"title": "x"}), false),
                    _ => (json!({}), false),
                };
                let sends = [Method::POST, Method::PATCH].contains(&method);
                let answer = attacker.send(method.clone(), &path.replace("{id}", &whom), sends.then_some(body)).await;
                assert!(answer.status < 500, "{role}: {method} {path}: {answer:?}");
                // A program, and an agent, gives and takes nothing, whatever its role is.
                let writes_access = (sends || method == Method::DELETE) && !path.starts_with("/v1/todos");
                if writes_access && (!is_admin || is_more) {
                    assert!([403, 404].contains(&answer.status), "{role}: {method} {path}: {answer:?}");
                }
            }
            let me = attacker.send(Method::GET, "/v1/me", None).await.body;
            assert_eq!(me["role"], role.to_ascii_uppercase(), "{me}");
        }
        assert_eq!(roles(&ann).await, before);
        for (list, field) in [("/v1/invitations", "invitations"), ("/v1/serviceAccounts", "serviceAccounts")] {
            let all = ann.send(Method::GET, list, None).await.body[field].clone();
            assert!(!all.to_string().contains("OWNER"), "{all}");
        }
        assert_eq!(ann.send(Method::GET, "/v1/tenant", None).await.body["stepUp"], Value::Null);
    });
}

/// Sends one request after another, some more once `ended`; none that was begun then succeeds, and none ever fails on our
/// side. The first success adds a permit to `at_work`.
async fn goes_on(at_work: &Semaphore, ended: &AtomicBool, refusals: &[u16], send: impl AsyncFn() -> Answer) {
    let (mut is_at_work, mut refused) = (false, 0);
    while refused < GOES_ON {
        let was_ended = ended.load(Ordering::SeqCst);
        let answer = send().await;
        assert!(answer.status < 500, "{answer:?}");
        match answer.status {
            200 if was_ended => panic!("it was begun when all had been taken away: {answer:?}"),
            200 if !is_at_work => {
                at_work.add_permits(1);
                is_at_work = true;
            }
            _ if !is_at_work => panic!("it is refused before anything is taken away: {answer:?}"),
            status if was_ended => {
                assert!(refusals.contains(&status), "{answer:?}");
                refused += 1;
            }
            _ => {}
        }
    }
}

#[test]
fn whoever_is_taken_away_while_at_work_is_out_with_the_answer_that_says_so() {
    with_fleet(|fleet, _| async {
        let (ann, bob) = (fleet.person("race-ann").await, fleet.person("race-bob").await);
        ann.sign_up("attacks-race").await;
        let invitation = json!({"email": "race-bob@people.example", "role": "ADMIN"});
        let invitation = ann.send(Method::POST, "/v1/invitations", Some(invitation)).await.body;
        let accept = format!("/v1/invitations/{}:accept", invitation["id"].as_str().unwrap());
        let his = bob.send(Method::POST, &accept, None).await.body["id"].as_str().unwrap().to_owned();
        // Tokens in hand: no exchange stands between him and what he tries.
        let (bob, again) = (bob.in_tenant("attacks-race").await, bob);
        let account = json!({"name": "report", "role": "VIEWER"});
        let account = ann.send(Method::POST, "/v1/serviceAccounts", Some(account)).await.body["id"].clone();
        let key = json!({"serviceAccount": account, "name": "x", "scopes": ["todo:read"]});
        let key = ann.send(Method::POST, "/v1/apiKeys", Some(key)).await.body;
        let (path, key) =
            (format!("/v1/apiKeys/{}", key["id"].as_str().unwrap()), key["key"].as_str().unwrap().to_owned());

        let (gone, revoked) = (AtomicBool::new(false), AtomicBool::new(false));
        let invites = async || {
            let body = json!({"email": format!("{}@x.example", testkit::unique("x")), "role": "ADMIN"});
            bob.send(Method::POST, "/v1/invitations", Some(body)).await
        };
        let form = [("subject_token", key.as_str()), ("subject_token_type", "urn:flotilla:token-type:api-key")];
        let opens = async || ann.exchange(&form).await;
        let at_work = Semaphore::new(0);
        let takes_away = async {
            at_work.acquire_many(3).await.unwrap().forget();
            assert_eq!(ann.send(Method::DELETE, &format!("/v1/members/{his}"), None).await.status, 200);
            gone.store(true, Ordering::SeqCst);
            assert_eq!(ann.send(Method::DELETE, &path, None).await.status, 200);
            revoked.store(true, Ordering::SeqCst);
        };
        tokio::join!(
            goes_on(&at_work, &gone, &[401, 403], invites),
            goes_on(&at_work, &gone, &[401, 403], invites),
            goes_on(&at_work, &revoked, &[400], opens),
            takes_away
        );
        assert_eq!(again.send(Method::GET, "/v1/todos", None).await.code(), "TENANT_UNCLEAR", "no new token either");
        // What he gave is void with him.
        let left = ann.send(Method::GET, "/v1/invitations", None).await.body["invitations"][0].clone();
        let accept = format!("/v1/invitations/{}:accept", left["id"].as_str().unwrap());
        let name = left["email"].as_str().unwrap().trim_end_matches("@x.example").to_owned();
        let taker = fleet.person(&name).await;
        assert_eq!(taker.send(Method::POST, &accept, None).await.status, 404);
    });
}

#[test]
fn what_is_sent_to_a_tenant_goes_to_no_other_when_its_sender_has_left() {
    with_fleet(|fleet, _| async {
        let (ann, eve, zoe) =
            (fleet.person("left-ann").await, fleet.person("left-eve").await, fleet.person("left-zoe").await);
        ann.sign_up("attacks-left").await;
        eve.sign_up("attacks-joined").await;
        let joins = async |owner: &Caller| {
            let invitation = json!({"email": "left-zoe@people.example", "role": "MEMBER"});
            let invitation = owner.send(Method::POST, "/v1/invitations", Some(invitation)).await.body;
            let accept = format!("/v1/invitations/{}:accept", invitation["id"].as_str().unwrap());
            zoe.send(Method::POST, &accept, None).await.body["id"].as_str().unwrap().to_owned()
        };
        let hers = joins(&ann).await;
        let writes = async || zoe.send(Method::POST, "/v1/todos", Some(json!({"title": "For attacks-left"}))).await;
        assert_eq!(writes().await.status, 200);
        joins(&eve).await;
        assert_eq!(ann.send(Method::DELETE, &format!("/v1/members/{hers}"), None).await.status, 200);
        // Her only tenant is another one by now.
        let refused = async {
            loop {
                let answer = writes().await;
                if answer.status != 200 {
                    return answer;
                }
            }
        };
        let first = tokio::time::timeout(testkit::PATIENCE, refused).await.unwrap();
        assert_eq!((first.status, first.code()), (401, "TOKEN_REVOKED"), "{first:?}");
        let there = eve.send(Method::GET, "/v1/todos", None).await.body;
        assert_eq!(there["todos"].as_array().map_or(0, Vec::len), 0, "{there}");
    });
}

#[test]
fn no_header_makes_another_caller_of_a_token() {
    with_fleet(|fleet, _| async {
        let (ann, eve) = (fleet.caller("attacks-headers", "ann").await, fleet.caller("attacks-others", "eve").await);
        let hers = format!("Bearer {}", eve.token().unwrap());
        let todo = ann.create(json!({"title": "x"})).await;
        let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
        for (name, value) in [
            ("grpc-metadata-authorization", hers.as_str()),
            ("proxy-authorization", &hers),
            ("x-forwarded-authorization", &hers),
            ("authorization-bin", &hers),
            ("x-forwarded-user", "eve"),
            ("x-forwarded-for", "10.0.0.1, 127.0.0.1"),
            ("forwarded", "for=127.0.0.1;host=operator;proto=https"),
            ("x-forwarded-host", "evil.example"),
            ("x-tenant", "attacks-others"),
            ("flotilla-tenant", "attacks-others"),
            ("x-original-url", "/v1/apiKeys"),
            ("x-http-method-override", "DELETE"),
            ("grpc-timeout", "1n"),
            ("grpc-encoding", "gzip"),
            ("grpc-status", "0"),
            ("te", "trailers"),
            ("traceparent", "00-ffffffffffffffffffffffffffffffff-ffffffffffffffff-ff"),
        ] {
            let me = Answer::of(ann.request(Method::GET, "/v1/me").header(name, value).send().await.unwrap()).await;
            assert_eq!((me.status, &me.body["tenant"]), (200, &json!("attacks-headers")), "{name}: {me:?}");
            assert_eq!(me.body["actor"], "user:ann", "{name}");
            let read = ann.request(Method::POST, &format!("{path}:complete")).header(name, value);
            let read = Answer::of(read.header("if-match", "\"v9\"").json(&json!({})).send().await.unwrap()).await;
            assert_eq!((read.status, read.code()), (412, "ETAG_MISMATCH"), "{name}: {read:?}");
        }
        assert_eq!(ann.send(Method::GET, &path, None).await.body, todo, "nothing came of them");
    });
}
