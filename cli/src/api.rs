//! The fleet's public API, as the command uses it, and tokens for it.

use std::time::Duration;

use anyhow::bail;
use authz::exchange::{ACCESS_TOKEN, TOKEN_EXCHANGE};
use authz::{OperatorRole, Role};
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use clap::Args;
use contracts::{TenantId, UserId};
use devstack::issuer::Issuer;
use devstack::sign_in::Browser;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::adoption;
use crate::context::Context;

/// How long a request is sent again while the fleet is unavailable.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who acts.
#[derive(Debug, Clone, Args)]
pub struct Who {
    /// The tenant.
    #[arg(long)]
    pub tenant: TenantId,
    /// The user.
    #[arg(long)]
    pub user: UserId,
}

/// A token to mint.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// The tenant.
    #[arg(long, required_unless_present_any = ["operator", "person"])]
    tenant: Option<TenantId>,
    /// A token for operator commands (FLOTILLA_OPERATOR_TOKEN), which no public API of the fleet accepts.
    #[arg(long, conflicts_with = "tenant")]
    operator: bool,
    /// With --operator: a viewer, who reads the fleet's state, sees no contents of tenants, and changes nothing.
    #[arg(long, requires = "operator")]
    viewer: bool,
    /// A token of the development provider's for this person, whose address is NAME@people.example: with it people sign up and accept invitations, and the
    /// gateway and `POST /v1/token` exchange it for the fleet's.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["tenant", "operator", "user", "role", "scope", "agent"])]
    person: Option<UserId>,
    /// The user.
    #[arg(long, required_unless_present = "person")]
    user: Option<UserId>,
    /// The user's role in the tenant: owner, admin, billing, member or viewer.
    #[arg(long, default_value = "owner", conflicts_with = "operator")]
    role: Role,
    /// The token's limits, separated by spaces, such as "todo:read todo:write"; by default the role alone counts.
    #[arg(long, conflicts_with = "operator")]
    scope: Option<String>,
    /// The agent that acts for the user.
    #[arg(long, conflicts_with = "operator")]
    agent: Option<UserId>,
    /// How long the token is valid, in minutes.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=1440))]
    minutes: u16,
}

/// A token of an owner of the tenant, of which the person becomes a member, where it is none.
pub async fn token(context: &Context, tenant: &str, user: &str, minutes: u16) -> Result<String, anyhow::Error> {
    let issuer = context.development_issuer()?;
    adoption::admit(context, tenant, user, Role::Owner).await?;
    issuer.token(tenant, user, chrono::TimeDelta::minutes(i64::from(minutes)))
}

/// A token of the development provider's, for a person whose e-mail address is verified.
fn person_token(context: &Context, name: &str, minutes: u16) -> Result<String, anyhow::Error> {
    context.development_issuer()?;
    let provider = Issuer::of_people(&context.open_stack_dir()?)?;
    let claims = json!({"email": format!("{name}@people.example"), "email_verified": true, "name": name});
    provider.person_token(name, &claims, chrono::TimeDelta::minutes(i64::from(minutes)))
}

pub async fn print_token(context: &Context, who: &TokenArgs) -> Result<(), anyhow::Error> {
    let lifetime = chrono::TimeDelta::minutes(i64::from(who.minutes));
    let token = match (&who.person, &who.tenant, &who.user) {
        (Some(person), ..) => person_token(context, person.as_str(), who.minutes)?,
        (None, Some(tenant), Some(user)) => {
            let mut claims = json!({"role": who.role.as_str()});
            if let Some(scope) = &who.scope {
                claims["scope"] = scope.as_str().into();
            }
            if let Some(agent) = &who.agent {
                claims["act"] = json!({"sub": agent, "kind": "agent"});
            }
            let issuer = context.development_issuer()?;
            adoption::admit(context, tenant.as_str(), user.as_str(), who.role).await?;
            issuer.token_with(tenant.as_str(), user.as_str(), &claims, lifetime)?
        }
        (None, None, Some(user)) => {
            let role = if who.viewer { OperatorRole::Viewer } else { OperatorRole::Operator };
            context.development_issuer()?.operator_token(user.as_str(), role, lifetime)?
        }
        (None, _, None) => bail!("name a --user, or a --person"),
    };
    if context.json {
        println!("{}", json!({"token": token, "expiresInSeconds": u32::from(who.minutes) * 60}));
    } else {
        println!("{token}");
    }
    Ok(())
}

/// A caller of the API.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// An answer.
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
    pub trace_id: String,
    /// It is the answer to an earlier request with the same key.
    pub replayed: bool,
    /// The shortest wait before a retry, if the answer has one.
    retry_after: Duration,
}

impl Api {
    pub async fn new(context: &Context, tenant: &str, user: &str) -> Result<Self, anyhow::Error> {
        Self::by(context, token(context, tenant, user, 1440).await?)
    }

    /// A caller with this token or key.
    pub fn by(context: &Context, token: String) -> Result<Self, anyhow::Error> {
        let base = context.gateway()?;
        let http = context.http(Duration::from_secs(15))?;
        Ok(Self { http, base, token })
    }

    /// A person with an e-mail address that is verified: of the provider that `run --oidc` has started, else of the development provider.
    pub async fn person(context: &Context, name: &str) -> Result<Self, anyhow::Error> {
        let here = if context.is_elsewhere() { None } else { Some(context.stack_status()?) };
        let token = match here.and_then(|stack| stack.unit("provider").ok()?.url.clone()) {
            Some(issuer) => Browser::at(&issuer)?.sign_in(name, "").await?.access_token,
            None => person_token(context, name, 10)?,
        };
        Self::by(context, token)
    }

    /// The same caller with a token of the fleet's for a tenant (RFC 8693).
    pub async fn of(&self, tenant: &str) -> Result<Self, anyhow::Error> {
        Ok(Self { token: self.exchanged(tenant).await?.0, ..self.clone() })
    }

    /// That token, and how long it is valid.
    pub async fn exchanged(&self, tenant: &str) -> Result<(String, Option<Duration>), anyhow::Error> {
        let form = [
            ("grant_type", TOKEN_EXCHANGE),
            ("subject_token_type", ACCESS_TOKEN),
            ("subject_token", &self.token),
            ("tenant", tenant),
        ];
        let answer = self.http.post(format!("{}/v1/token", self.base)).form(&form).send().await?;
        let (status, body) = (answer.status(), answer.json::<Value>().await?);
        match body["access_token"].as_str() {
            Some(token) => Ok((token.to_owned(), body["expires_in"].as_u64().map(Duration::from_secs))),
            None => bail!("no token for {tenant}: the fleet answers {status}: {body}"),
        }
    }

    /// Sends a request once.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let trace_id =
            response.headers().get("trace-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let replayed = response.headers().contains_key("idempotency-replayed");
        let seconds = response.headers().get("retry-after").and_then(|after| after.to_str().ok()?.parse().ok());
        let retry_after = Duration::from_secs(seconds.unwrap_or_default());
        let body = response.json().await.unwrap_or(Value::Null);
        Ok(Answer { status, body, trace_id, replayed, retry_after })
    }

    /// Writes with the same key until the fleet has answered: what is tried twice happens once.
    pub async fn write(&self, path: &str, key: &str, body: &Value) -> Result<Answer, anyhow::Error> {
        self.until_answered(Method::POST, path, Some(key), Some(body)).await
    }

    /// Reads until the fleet has answered.
    pub async fn read(&self, path: &str) -> Result<Answer, anyhow::Error> {
        self.until_answered(Method::GET, path, None, None).await
    }

    async fn until_answered(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, anyhow::Error> {
        let mut delays = ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(100))
            .with_max_interval(Duration::from_secs(3))
            .with_max_elapsed_time(Some(PATIENCE))
            .build();
        loop {
            let answer = self.call(method.clone(), path, key, body).await;
            let problem = match &answer {
                Ok(answer) if again(answer) => format!("{}: {}", answer.status, answer.body["detail"]),
                Ok(_) => return Ok(answer?),
                Err(error) => error.to_string(),
            };
            match delays.next_backoff() {
                Some(delay) => {
                    let said = answer.map_or(Duration::ZERO, |answer| answer.retry_after);
                    tokio::time::sleep(delay.max(said)).await;
                }
                None => bail!("the fleet did not answer within {PATIENCE:?}: {problem}"),
            }
        }
    }
}

fn again(answer: &Answer) -> bool {
    answer.status.is_server_error()
        || answer.status == StatusCode::TOO_MANY_REQUESTS
        || answer.status == StatusCode::REQUEST_TIMEOUT
        || ["IDEMPOTENCY_KEY_IN_USE", "LOCKED"].iter().any(|code| answer.body["code"] == *code)
}
