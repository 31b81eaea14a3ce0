//! Which tokens are believed, and which are not.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::{SystemTime, UNIX_EPOCH};

use authz::{JwksError, JwksSource, People, Role, TokenError, Typ, Verifier};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

struct Issuer {
    key: EncodingKey,
    folder: std::path::PathBuf,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn jwk(key: &EncodingKey, kid: &str) -> Jwk {
    let mut jwk = Jwk::from_encoding_key(key, Algorithm::EdDSA).unwrap();
    jwk.common.key_id = Some(kid.to_owned());
    jwk
}

fn new_key() -> EncodingKey {
    EncodingKey::from_ed_der(Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap().as_ref())
}

fn issuer(name: &str) -> (Issuer, Verifier) {
    let folder = std::env::temp_dir().join(format!("authz-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let issuer = Issuer { key: new_key(), folder };
    publish(&issuer, &[jwk(&issuer.key, "k1")]);
    let source = JwksSource::File(issuer.folder.join("jwks.json"));
    (issuer, Verifier::new(source, "https://issuer.test", "flotilla").unwrap())
}

fn publish(issuer: &Issuer, keys: &[Jwk]) {
    let set = JwkSet { keys: keys.to_vec() };
    std::fs::write(issuer.folder.join("jwks.json"), serde_json::to_vec(&set).unwrap()).unwrap();
}

fn claims() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    json!({"iss": "https://issuer.test", "aud": "flotilla", "sub": "ann", "tenant": "acme", "client_id": "cli",
           "iat": now, "exp": now + 60, "jti": "1"})
}

fn header(kid: &str) -> Header {
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some("at+jwt".to_owned());
    header.kid = Some(kid.to_owned());
    header
}

fn bearer(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    format!("Bearer {}", encode(header, claims, key).unwrap())
}

#[tokio::test]
async fn a_good_token_says_who_calls() {
    let (issuer, verifier) = issuer("good");
    let caller = verifier.verify(Some(&bearer(&header("k1"), &claims(), &issuer.key))).await.unwrap();
    let said = (caller.tenant.as_str(), caller.actor.to_string(), caller.role, caller.scopes);
    assert_eq!(said, ("acme", "user:ann".to_owned(), None, None));
}

#[tokio::test]
async fn a_token_says_who_acts_for_whom_and_what_it_is_limited_to() {
    let (issuer, verifier) = issuer("act");
    let mut claims = claims();
    claims["role"] = json!("member");
    claims["scope"] = json!("todo:read todo:write");
    // The outermost acts; within it is whom it acts for, and the subject last (RFC 8693, 4.1).
    claims["act"] = json!({"sub": "planner", "kind": "agent", "act": {"sub": "desk", "kind": "service_account"}});
    let caller = verifier.verify(Some(&bearer(&header("k1"), &claims, &issuer.key))).await.unwrap();
    assert_eq!(caller.actor.to_string(), "agent:planner service_account:desk user:ann");
    assert_eq!(caller.role, Some(Role::Member));
    assert_eq!(caller.scopes.unwrap(), ["todo:read", "todo:write"]);
}

#[tokio::test]
async fn a_provider_that_does_not_mark_access_tokens_is_believed_by_their_only_audience() {
    let (issuer, _) = issuer("people");
    let people = |typ| {
        let source = JwksSource::File(issuer.folder.join("jwks.json"));
        People::new(source, "https://issuer.test", ("flotilla", typ)).unwrap()
    };
    let (marked, unmarked) = (people(Typ::AccessToken), people(Typ::Jwt));
    let token = |typ: Option<&str>, change: Value| {
        let (mut header, mut claims) = (header("k1"), claims());
        header.typ = typ.map(ToOwned::to_owned);
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        bearer(&header, &claims, &issuer.key)
    };
    for (typ, change, is_marked, is_taken) in [
        (Some("at+jwt"), json!({}), true, true),
        (Some("at+jwt"), json!({"aud": ["flotilla", "userinfo"]}), true, true),
        (Some("JWT"), json!({"scope": "email"}), false, true),
        (Some("JWT"), json!({"scope": "email", "aud": ["flotilla"], "typ": "Bearer", "azp": "spa"}), false, true),
        (None, json!({"scp": "access"}), false, true),
        // An ID token need not have any mark of one.
        (Some("JWT"), json!({}), false, false),
        (Some("JWT"), json!({"scope": "email", "azp": "flotilla"}), false, false),
        (Some("JWT"), json!({"scope": "email", "client_id": "flotilla"}), false, false),
        (Some("JWT"), json!({"scope": "email", "aud": ["flotilla", "userinfo"]}), false, false),
        (Some("JWT"), json!({"scope": "email", "aud": "else"}), false, false),
        (Some("JWT"), json!({"scope": "email", "nonce": "n"}), false, false),
        (Some("JWT"), json!({"scope": "email", "at_hash": "h"}), false, false),
        (Some("JWT"), json!({"scope": "email", "typ": "ID"}), false, false),
        (Some("JWT"), json!({"scope": "email", "events": {}}), false, false),
        (Some("secevent+jwt"), json!({}), false, false),
    ] {
        let token = token(typ, change.clone());
        assert_eq!(marked.verify(Some(&token)).await.is_ok(), is_marked, "{typ:?} {change}");
        assert_eq!(unmarked.verify(Some(&token)).await.is_ok(), is_taken, "{typ:?} {change}");
    }
    let signed_in = token(Some("at+jwt"), json!({"acr": "urn:mfa", "auth_time": 1_795_000_000}));
    let signed_in = marked.verify(Some(&signed_in)).await.unwrap();
    assert_eq!((signed_in.acr.as_deref(), signed_in.auth_time), (Some("urn:mfa"), Some(1_795_000_000)));
    // Another provider says by another claim that it has verified the address.
    let owned = people(Typ::AccessToken).verified_by("xms_edov");
    for (change, is_known) in [
        (json!({"email": "ann@x.example", "xms_edov": true}), true),
        (json!({"email": "ann@x.example", "xms_edov": "true"}), false),
        (json!({"email": "ann@x.example", "email_verified": true}), false),
    ] {
        let person = owned.verify(Some(&token(Some("at+jwt"), change.clone()))).await.unwrap();
        assert_eq!(person.email.is_some(), is_known, "{change}");
    }
    // What is no class and no time is not said, and refuses nobody.
    let odd = marked.verify(Some(&token(Some("at+jwt"), json!({"acr": 1, "auth_time": "now"})))).await.unwrap();
    assert_eq!((odd.acr, odd.auth_time), (None, None));
    // What could not be asked for in a header is no class.
    let odd = marked.verify(Some(&token(Some("at+jwt"), json!({"acr": "a\", max_age=\"0"})))).await.unwrap();
    assert_eq!(odd.acr, None);
}

#[tokio::test]
async fn no_token_is_not_a_caller() {
    let (_issuer, verifier) = issuer("none");
    for value in [None, Some(""), Some("Basic YTpi"), Some("Bearer")] {
        assert!(matches!(verifier.verify(value).await, Err(TokenError::Missing)), "{value:?}");
    }
    for value in ["Bearer x", "Bearer a.b.c", "Bearer eyJhbGciOiJub25lIn0.e30."] {
        assert!(matches!(verifier.verify(Some(value)).await, Err(TokenError::Malformed(_))), "{value:?}");
    }
}

#[tokio::test]
async fn each_claim_counts() {
    let (issuer, verifier) = issuer("claims");
    for (claim, value) in [
        ("iss", json!("https://else.test")),
        ("aud", json!("else")),
        ("iss", json!(["https://issuer.test"])),
        ("exp", json!(1)),
        ("exp", json!(4_000_000_000_u64)),
        ("iat", json!(4_000_000_000_u64)),
        ("iat", json!("now")),
        ("nbf", json!(4_000_000_000_u64)),
        ("tenant", json!("Not A Slug")),
        ("tenant", json!("evt.>")),
        ("sub", json!("")),
        ("sub", json!("ann\u{200b}")),
        ("role", json!("root")),
        ("kind", json!("god")),
        ("scope", json!(["todo:read"])),
        ("kind", json!("service")),
        (
            "act",
            json!({"sub": "🚢".repeat(200), "kind": "agent", "act":
            {"sub": "🚢".repeat(200), "kind": "agent", "act": {"sub": "%".repeat(200), "kind": "agent"}}}),
        ),
        ("act", json!({"sub": "planner"})),
        ("act", json!({"kind": "agent"})),
        ("act", json!({"sub": "plan\u{200b}ner", "kind": "agent"})),
        (
            "act",
            json!({"sub": "a", "kind": "agent", "act": {"sub": "b", "kind": "agent", "act":
            {"sub": "c", "kind": "agent", "act": {"sub": "d", "kind": "agent"}}}}),
        ),
    ] {
        let mut claims = claims();
        claims[claim] = value.clone();
        let result = verifier.verify(Some(&bearer(&header("k1"), &claims, &issuer.key))).await;
        assert!(result.is_err(), "{claim} {value}");
    }
    let now = claims()["iat"].as_u64().unwrap();
    for (iat, exp, good) in [
        (now + 20, now + 60, true),
        (now + 60, now + 120, false),
        (now, now + 24 * 3_600, true),
        (now, now + 24 * 3_600 + 1, false),
    ] {
        let mut claims = claims();
        (claims["iat"], claims["exp"]) = (iat.into(), exp.into());
        let result = verifier.verify(Some(&bearer(&header("k1"), &claims, &issuer.key))).await;
        assert_eq!(result.is_ok(), good, "{iat} {exp}: {result:?}");
        let ahead = matches!(result, Err(TokenError::Expired));
        assert_eq!(ahead, iat > now + 30, "{result:?}");
    }
    for claim in ["iss", "aud", "exp", "sub", "tenant", "client_id", "iat", "jti"] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(claim);
        let result = verifier.verify(Some(&bearer(&header("k1"), &claims, &issuer.key))).await;
        assert!(result.is_err(), "without {claim}");
    }
}

#[tokio::test]
async fn another_key_type_or_algorithm_is_not_trusted() {
    let (issuer, verifier) = issuer("keys");
    let forged = bearer(&header("k1"), &claims(), &new_key());
    assert!(matches!(verifier.verify(Some(&forged)).await, Err(TokenError::Untrusted(_))));
    let mut id_token = header("k1");
    id_token.typ = Some("JWT".to_owned());
    let id_token = bearer(&id_token, &claims(), &issuer.key);
    assert!(matches!(verifier.verify(Some(&id_token)).await, Err(TokenError::Malformed(_))));
    for crit in [vec!["b64".to_owned()], Vec::new()] {
        let mut extended = header("k1");
        extended.crit = Some(crit);
        let extended = bearer(&extended, &claims(), &issuer.key);
        assert!(matches!(verifier.verify(Some(&extended)).await, Err(TokenError::Malformed(_))));
    }
    let mut shared = header("k1");
    shared.alg = Algorithm::HS256;
    let shared = bearer(&shared, &claims(), &EncodingKey::from_secret(b"public key bytes"));
    assert!(matches!(verifier.verify(Some(&shared)).await, Err(TokenError::Untrusted(_))));
}

#[tokio::test]
async fn a_rotated_key_is_fetched_and_the_known_one_survives_an_issuer_that_is_away() {
    let (issuer, verifier) = issuer("rotate");
    let old = bearer(&header("k1"), &claims(), &issuer.key);
    verifier.verify(Some(&old)).await.unwrap();
    let next = new_key();
    publish(&issuer, &[jwk(&issuer.key, "k1"), jwk(&next, "k2")]);
    verifier.refresh().await.unwrap();
    verifier.verify(Some(&bearer(&header("k2"), &claims(), &next))).await.unwrap();
    std::fs::remove_file(issuer.folder.join("jwks.json")).unwrap();
    assert!(verifier.refresh().await.is_err());
    // Another token of that key: the one before was verified a moment ago and is remembered.
    let mut another = claims();
    another["jti"] = "2".into();
    verifier.verify(Some(&bearer(&header("k1"), &another, &issuer.key))).await.unwrap();
}

#[tokio::test]
async fn whose_keys_were_never_had_is_unavailable_and_refuses_nobody() {
    let (issuer, verifier) = issuer("never");
    let token = bearer(&header("k1"), &claims(), &issuer.key);
    let keys = issuer.folder.join("jwks.json");
    let away = issuer.folder.join("away.json");
    std::fs::rename(&keys, &away).unwrap();
    // A service fetches at its start; what comes within seconds of that waits for no other fetch.
    verifier.refresh().await.unwrap_err();
    for _ in 0..2 {
        let refused = verifier.verify(Some(&token)).await.unwrap_err();
        assert!(matches!(refused, TokenError::Keys(_)), "{refused:?}");
    }
    std::fs::rename(&away, &keys).unwrap();
    verifier.refresh().await.unwrap();
    verifier.verify(Some(&token)).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_is_away_is_asked_once_in_a_while_and_one_without_keys_takes_none_away() {
    let (issuer, verifier) = issuer("busy");
    let token = bearer(&header("k1"), &claims(), &issuer.key);
    let (keys, away) = (issuer.folder.join("jwks.json"), issuer.folder.join("away.json"));
    std::fs::rename(&keys, &away).unwrap();
    verifier.verify(Some(&token)).await.unwrap_err();
    std::fs::rename(&away, &keys).unwrap();
    // Nobody waits for a fetch that others have waited for in vain.
    assert!(matches!(verifier.verify(Some(&token)).await, Err(TokenError::Keys(_))));
    verifier.refresh().await.unwrap();
    std::fs::write(&keys, r#"{"keys": []}"#).unwrap();
    verifier.refresh().await.unwrap_err();
    verifier.verify(Some(&token)).await.unwrap();
}

/// Serves, on loopback, the description of one issuer and its key set, to whoever asks for either by any path.
async fn described(key: &EncodingKey) -> (String, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let description = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/jwks.json")}).to_string();
    let keys = serde_json::to_string(&JwkSet { keys: vec![jwk(key, "k1")] }).unwrap();
    let served = async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 4_096];
            let read = connection.read(&mut request).await.unwrap_or_default();
            let asked = String::from_utf8_lossy(&request[..read]);
            let body = if asked.starts_with("GET /jwks.json ") { &keys } else { &description };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: ";
            connection.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).await.ok();
        }
    };
    (issuer, served)
}

#[tokio::test]
async fn a_description_that_is_another_issuers_leads_to_no_keys() {
    let key = new_key();
    let (issuer, served) = described(&key).await;
    let verifier = |named: &str| Verifier::new(JwksSource::Discovery(named.to_owned()), named, "flotilla").unwrap();
    let token = |named: &str| {
        let mut claims = claims();
        claims["iss"] = named.into();
        bearer(&header("k1"), &claims, &key)
    };
    let asked = async {
        verifier(&issuer).verify(Some(&token(&issuer))).await.unwrap();
        // The same server, asked as somebody else: its keys are not theirs.
        let other = format!("{issuer}/other");
        let refused = verifier(&other).verify(Some(&token(&other))).await.unwrap_err();
        assert!(matches!(&refused, TokenError::Keys(JwksError::OtherIssuer(said)) if *said == issuer), "{refused:?}");
    };
    tokio::select! {
        () = served => unreachable!("it serves until nobody asks"),
        () = asked => {}
    }
}
