//! The exchange of a credential for a token of the fleet's (RFC 8693): an access token of the OpenID provider, a key, or the fleet's token of a
//! service's caller. Whatever is wrong with a subject's credential, the answer is the same.

use std::sync::Arc;

use authz::{Caller, People, Person, ServiceKeys, SignIn, StepUp, TokenError, Verifier};
use chrono::{DateTime, Utc};
use contracts::events::identity::ApiKeyId;
use contracts::events::identity::MemberUpdatedV1;
use contracts::{Actor, ActorKind, TenantId, UserId, actor};
use service::secret::Secret;
use service::{Call, Code, Failure, TenantTx, clock};
use tracing::warn;
use uuid::Uuid;

use crate::api_key::{ApiKey, KeySecret};
use crate::commands::{App, Error, in_person};
use crate::member::{Member, Profile};
use crate::service_account::ServiceAccount;
use crate::store_person::Membership;
use crate::texts::{Scopes, Task};
use crate::tokens::Grant;
use crate::{outgoing, store_api_key, store_member, store_person, store_service_account, store_tenant};

/// A credential.
pub enum Credential<'a> {
    /// An access token of the provider, and the agent that is to act for the person.
    Person {
        /// The token.
        token: &'a str,
        /// The agent, if one is to act.
        agent: Option<AgentKey<'a>>,
    },
    /// A key.
    Key(&'a str),
    /// The token that a service's caller came with, and by what the service says who it is.
    Carried {
        /// The token.
        token: &'a str,
        /// The service's assertion.
        assertion: &'a str,
    },
}

/// By what credentials are verified.
pub struct Verifiers {
    /// Persons, by their provider's tokens.
    pub people: Arc<People>,
    /// The fleet's own tokens.
    pub fleet: Arc<Verifier>,
    /// The issuer of these: whom services address.
    pub issuer: String,
    /// Services; None: no service calls another one.
    pub service_keys: Option<Secret>,
}

/// By what an agent says who it is, and for what.
pub struct AgentKey<'a> {
    /// The key of the program.
    pub key: &'a str,
    /// What it is to do, if it says.
    pub task: Option<Task>,
}

fn refused(reason: &'static str, message: &'static str) -> Failure {
    Failure::new(Code::InvalidArgument, reason, message)
}

fn invalid() -> Failure {
    refused("INVALID_GRANT", "the subject_token is none that is valid here: sign in again, or ask for another key")
}

/// Whom the token is to name, and what it allows.
///
/// # Errors
/// INVALID_GRANT for a credential that is not valid, INVALID_TARGET for a tenant that it is not for, or where one must be named;
/// INVALID_SCOPE for scopes that it has not; INVALID_REQUEST for an assertion that no known service made, or too many actors; UNAVAILABLE
/// when the provider's keys, or the fleet's, are.
pub async fn exchange(
    app: &App,
    by: &Verifiers,
    credential: Credential<'_>,
    (tenant, scope): (Option<TenantId>, Option<Scopes>),
) -> Result<Grant, Failure> {
    match credential {
        Credential::Person { token, agent } => of_person(app, &by.people, token, agent, (tenant, scope)).await,
        Credential::Key(text) => of_key(app, text, tenant, scope).await,
        Credential::Carried { token, assertion } => carried(app, by, (token, assertion), (tenant, scope)).await,
    }
}

async fn of_person(
    app: &App,
    people: &People,
    token: &str,
    agent: Option<AgentKey<'_>>,
    (tenant, scope): (Option<TenantId>, Option<Scopes>),
) -> Result<Grant, Failure> {
    let issued = clock::now();
    let person = people.read(token).await.map_err(|error| match error {
        unavailable @ TokenError::Keys(_) => unavailable.into(),
        _ => invalid(),
    })?;
    let acting = match &agent {
        Some(agent) => Some(opened(app, agent.key, issued).await.map_err(|failure| match failure.reason {
            "INVALID_GRANT" => {
                refused("INVALID_GRANT", "the actor_token is none that is valid here: ask for another key")
            }
            _ => failure,
        })?),
        None => None,
    };
    // An agent is of one tenant.
    let tenant = tenant.or_else(|| acting.as_ref().map(|acting| acting.tenant.clone()));
    if acting.as_ref().is_some_and(|acting| Some(&acting.tenant) != tenant.as_ref()) {
        return Err(refused("INVALID_TARGET", "the key of the actor_token is another tenant's"));
    }
    let mut tx = app.db.begin_operator("a person is known before a tenant is chosen").await?;
    let all = store_person::memberships(&mut tx, &person, tenant.as_ref()).await?;
    tx.commit().await?;
    let chosen = chosen(all, tenant.is_some())?;
    let step_up = know_again(app, &chosen, &person).await?;
    let sign_in = SignIn { acr: person.acr, auth_time: person.auth_time, step_up };
    let Membership { tenant, member, user, role } = chosen;
    let until = DateTime::from_timestamp(person.expires_unix_seconds, 0).unwrap_or_default();
    let (person, mut sources) = (Actor::new(ActorKind::User, user), vec![member.uuid()]);
    let Some((acting, AgentKey { key: _, task })) = acting.zip(agent) else {
        let scope = scope.map(|scope| scope.as_slice().join(" "));
        return Ok(Grant { tenant, actor: person, task: None, role, scope, sources, sign_in, issued, until });
    };
    // The person's role, within the key's scopes, for as long as both last. It does no act for which the person has to sign in otherwise.
    let sign_in = SignIn { acr: None, auth_time: None, ..sign_in };
    let scope = Some(narrowed(&acting.key, scope.as_ref())?);
    sources.push(acting.key.id.uuid());
    let until = until.min(acting.key.expire_time);
    let id = acting.program.id.to_string().parse().map_err(Failure::internal)?;
    let actor = Actor { kind: ActorKind::Agent, id, acts_for: Some(Box::new(person)) };
    Ok(Grant { tenant, actor, task, role, scope, sources, sign_in, issued, until })
}

/// A service acts for its own caller: as what that one is now, within what its token allows, and no longer than that is valid.
async fn carried(
    app: &App,
    by: &Verifiers,
    (token, assertion): (&str, &str),
    (tenant, scope): (Option<TenantId>, Option<Scopes>),
) -> Result<Grant, Failure> {
    let issued = clock::now();
    let keys =
        by.service_keys.as_ref().map_or_else(|| Ok(ServiceKeys::default()), |keys| ServiceKeys::read(&keys.expose()));
    let service = keys.map_err(Failure::internal)?.verify(assertion, &by.issuer).map_err(|error| {
        warn!(%error, "somebody says to be a service, and is none");
        stranger()
    })?;
    let caller = by.fleet.verify(Some(&format!("Bearer {token}"))).await.map_err(|error| match error {
        unavailable @ TokenError::Keys(_) => unavailable.into(),
        _ => invalid(),
    })?;
    if tenant.is_some_and(|tenant| tenant != caller.tenant) {
        return Err(refused("INVALID_TARGET", "the token is another tenant's"));
    }
    let call = Call::of_request(in_person(caller.tenant.clone(), caller.actor.subject().id.clone()), None);
    let mut tx = app.db.read(&call).await?;
    let sources = still_stands(&mut tx, &caller, issued).await?;
    let step_up = store_tenant::get(&mut tx).await?.and_then(|tenant| tenant.step_up);
    tx.end().await?;
    let sources = sources.ok_or_else(invalid)?;
    let Caller { tenant, actor, role: Some(role), scopes, sign_in, issued: of, expires_unix_seconds } = caller else {
        return Err(invalid());
    };
    // A token is taken some seconds beyond its end, for clocks that differ: another one is not to be had by that.
    let until = DateTime::from_timestamp(expires_unix_seconds, 0).unwrap_or_default();
    if until <= issued {
        return Err(invalid());
    }
    if actor.chain().count() >= actor::MAX_CHAIN {
        return Err(refused("INVALID_REQUEST", "too many act one for another"));
    }
    let scope = match (scope, scopes) {
        (Some(asked), Some(has)) if !asked.as_slice().iter().all(|scope| has.contains(scope)) => {
            return Err(refused("INVALID_SCOPE", "the token has not all of these scopes"));
        }
        (Some(asked), _) => Some(asked.as_slice().join(" ")),
        (None, has) => has.map(|has| has.join(" ")),
    };
    // A program that acts for itself is not asked how it signed in.
    let step_up = step_up.filter(|_| actor.subject().kind == ActorKind::User);
    let sign_in = SignIn { step_up, ..sign_in.as_deref().cloned().unwrap_or_default() };
    let task = of.and_then(|of| of.task.clone());
    let task = task.map(|task| Task::parse(&task)).transpose().map_err(Failure::internal)?;
    let actor = Actor { kind: ActorKind::Service, id: service, acts_for: Some(Box::new(actor)) };
    Ok(Grant { tenant, actor, task, role, scope, sources, sign_in, issued, until })
}

fn stranger() -> Failure {
    refused("INVALID_REQUEST", "the actor_token is none by which a service of the fleet says who it is")
}

/// What a token was issued for, if the one for whom all is done is still there, in the role that it says, and so is the rest of it.
async fn still_stands(tx: &mut TenantTx, caller: &Caller, now: DateTime<Utc>) -> Result<Option<Vec<Uuid>>, Failure> {
    let subject = caller.actor.subject();
    let sources = caller.issued.as_ref().map_or(&[][..], |issued| &issued.sources);
    // A token that does not say so: of a person alone it is known anyhow.
    if sources.is_empty()
        && !caller.actor.chain().all(|actor| matches!(actor.kind, ActorKind::User | ActorKind::Service))
    {
        return Ok(None);
    }
    let (first, role) = match subject.kind {
        ActorKind::User => {
            let Some(member) = store_member::of_user(tx, &subject.id).await? else { return Ok(None) };
            (member.id.uuid(), member.role)
        }
        ActorKind::ServiceAccount => {
            let Ok(id) = subject.id.as_str().parse() else { return Ok(None) };
            let Some(program) = store_service_account::get(tx, id).await? else { return Ok(None) };
            (program.id.uuid(), program.role)
        }
        ActorKind::Service | ActorKind::Agent => return Ok(None),
    };
    // One who left and came back is another member. Beside the first there is a key.
    if caller.role != Some(role) || sources.first().is_some_and(|id| *id != first) {
        return Ok(None);
    }
    for id in sources.iter().skip(1) {
        let key = store_api_key::get(tx, ApiKeyId::new(*id)).await?;
        if !key.is_some_and(|key| key.is_valid(now)) {
            return Ok(None);
        }
    }
    Ok(Some(if sources.is_empty() { vec![first] } else { sources.to_vec() }))
}

/// Notes what the provider said of a person when it issued a token, where a member is known as something else since before. What it leaves
/// out stays as it was. Returns what the tenant demands of a sign-in.
///
/// # Errors
/// The errors of the database.
async fn know_again(app: &App, found: &Membership, person: &Person) -> Result<Option<StepUp>, Error> {
    let profile = Profile::of(person);
    let call = Call::of_request(in_person(found.tenant.clone(), found.user.clone()), None);
    let known = |member: Member| {
        // To the second, as tokens have it: an older one brings no old address back.
        let older = person.issued_unix_seconds < member.update_time.timestamp();
        let profile = profile.clone().filter(|_| !older);
        let new = profile.and_then(|profile| member.known_as(profile, clock::now()));
        new.map(|new| (member, new))
    };
    let mut tx = app.db.read(&call).await?;
    let member = store_member::get(&mut tx, found.member).await?;
    let step_up = store_tenant::get(&mut tx).await?.and_then(|tenant| tenant.step_up);
    tx.end().await?;
    if member.and_then(known).is_none() {
        return Ok(step_up);
    }
    let mut tx = app.db.begin(&call).await?;
    let member = store_member::get_for_update(&mut tx, found.member).await?;
    let Some((before, member)) = member.and_then(known) else {
        tx.end().await?;
        return Ok(step_up);
    };
    store_member::save(&mut tx, &before, &member).await?;
    let events = vec![outgoing::event(&call, outgoing::member(&member), MemberUpdatedV1::of)?];
    app.outbox.commit(tx, events, &()).await?;
    Ok(step_up)
}

fn chosen(all: Vec<Membership>, named: bool) -> Result<Membership, Failure> {
    let several = all.len() > 1;
    match all.into_iter().next() {
        Some(_) if several => {
            Err(refused("INVALID_TARGET", "you are a member of several tenants: name one by the parameter tenant"))
        }
        Some(found) => Ok(found),
        None if named => Err(refused("INVALID_TARGET", "you are no member of this tenant")),
        None => Err(refused("INVALID_TARGET", "you are a member of no tenant: accept an invitation, or sign up")),
    }
}

/// A key that opens, with the program that has it.
struct Opened {
    tenant: TenantId,
    key: ApiKey,
    program: ServiceAccount,
}

/// Opens a key, which is noted as used.
async fn opened(app: &App, text: &str, issued: DateTime<Utc>) -> Result<Opened, Failure> {
    let (id, secret) = KeySecret::read(text).ok_or_else(invalid)?;
    let mut tx = app.db.begin_operator("a key names its tenant by its id").await?;
    let owner = store_person::tenant_of_key(&mut tx, id).await?;
    tx.commit().await?;
    let tenant = owner.ok_or_else(invalid)?;
    // Whoever holds it is not known yet: the transaction is the tenant's.
    let holder: UserId = id.to_string().parse().map_err(Failure::internal)?;
    let call = Call::of_request(in_person(tenant.clone(), holder), None);
    let mut tx = app.db.begin(&call).await?;
    let found = store_api_key::with_digest(&mut tx, id).await?;
    // Digests are compared: how long that takes says nothing of the secret.
    let Some((key, _)) = found.filter(|(key, digest)| *digest == secret.digest() && key.is_valid(issued)) else {
        tx.end().await?;
        return Err(invalid());
    };
    let program = store_service_account::get(&mut tx, key.of).await?;
    store_api_key::used(&mut tx, id, issued).await?;
    app.outbox.commit(tx, Vec::new(), &()).await?;
    let program = program.ok_or_else(invalid)?;
    Ok(Opened { tenant, key, program })
}

/// The scopes of a token that a key opens for: those that are asked for, among its own.
fn narrowed(key: &ApiKey, asked: Option<&Scopes>) -> Result<String, Failure> {
    let scope = asked.unwrap_or(&key.scopes);
    if !scope.as_slice().iter().all(|scope| key.scopes.as_slice().contains(scope)) {
        return Err(refused("INVALID_SCOPE", "the key has not all of these scopes"));
    }
    Ok(scope.as_slice().join(" "))
}

async fn of_key(app: &App, text: &str, tenant: Option<TenantId>, scope: Option<Scopes>) -> Result<Grant, Failure> {
    let issued = clock::now();
    let Opened { tenant: owner, key, program } = opened(app, text, issued).await?;
    if tenant.is_some_and(|tenant| tenant != owner) {
        return Err(refused("INVALID_TARGET", "this key is another tenant's"));
    }
    let scope = Some(narrowed(&key, scope.as_ref())?);
    let id = program.id.to_string().parse().map_err(Failure::internal)?;
    let (actor, until) = (Actor::new(ActorKind::ServiceAccount, id), key.expire_time);
    let (sources, sign_in) = (vec![program.id.uuid(), key.id.uuid()], SignIn::default());
    let role = program.role;
    Ok(Grant { tenant: owner, actor, task: None, role, scope, sources, sign_in, issued, until })
}
