//! `flotilla login`: a person signs in at the OpenID provider, in a browser on any device (RFC 8628), and the terminal gets the token.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use contracts::TenantId;
use oauth2::basic::{BasicClient, BasicErrorResponse, BasicTokenType};
use oauth2::{
    ClientId, DeviceAuthorizationUrl, DeviceCodeErrorResponse, EmptyExtraTokenFields, HttpRequest, HttpResponse,
    RequestTokenError, Scope, StandardDeviceAuthorizationResponse, StandardTokenResponse, TokenResponse as _, TokenUrl,
    http,
};
use serde::Deserialize;
use serde_json::json;

use crate::api::Api;
use crate::context::Context;

/// How long the provider may take for an answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// The largest answer.
const MAX_ANSWER_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Args)]
pub struct LoginArgs {
    /// The provider, by its issuer's URL; without it, that which `run --oidc` has started.
    #[arg(long, env = "FLOTILLA_OPENID_PROVIDER", value_name = "URL")]
    provider: Option<String>,
    /// The client id of this command at the provider: a public client that may use the device grant.
    #[arg(long, env = "FLOTILLA_OPENID_CLIENT", default_value = "flotilla-cli", value_name = "ID")]
    client: String,
    /// The audience to ask for, where the provider wants it asked for (Auth0).
    #[arg(long, env = "FLOTILLA_OPENID_AUDIENCE", value_name = "URL")]
    audience: Option<String>,
    /// The scopes to ask for, separated by spaces.
    #[arg(long, default_value = "openid email profile")]
    scope: String,
    /// A class of authentication to ask for, as `acr_values` of a refusal names it. Repeat it, the preferred class first. A provider may ignore it.
    #[arg(long, value_name = "CLASS")]
    acr: Vec<String>,
    /// The most seconds since the sign-in, as `max_age` of a refusal says.
    #[arg(long, value_name = "SECONDS")]
    max_age: Option<u32>,
    /// Exchange the provider's token for one of the fleet's, for this tenant. Else the provider's is printed, which the gateway exchanges for
    /// whoever is a member of one tenant.
    #[arg(long)]
    tenant: Option<TenantId>,
}

/// What a provider says of itself (OpenID Connect Discovery, 3).
#[derive(Deserialize)]
struct Description {
    issuer: String,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
}

/// A request to the provider that got no answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error(transparent)]
    Answer(#[from] http::Error),
    #[error("the provider's answer has more than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
}

/// One request of the library, by our client.
async fn send(client: reqwest::Client, request: HttpRequest) -> Result<HttpResponse, Unanswered> {
    let mut response = client.execute(request.try_into()?).await?;
    let mut answer = http::Response::builder().status(response.status());
    for (name, value) in response.headers() {
        answer = answer.header(name, value);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            return Err(Unanswered::TooLarge);
        }
    }
    Ok(answer.body(body)?)
}

pub async fn run(context: &Context, args: &LoginArgs) -> Result<(), anyhow::Error> {
    let issuer = match &args.provider {
        Some(issuer) => issuer.clone(),
        None => {
            let url = context.stack_status()?.unit("provider").ok().and_then(|unit| unit.url.clone());
            url.context("which provider? Say --provider URL; `run --oidc` starts one, and `flotilla token --person NAME` needs none")?
        }
    };
    let granted = sign_in(&issuer, args).await?;
    let token = granted.access_token().secret();
    let (token, seconds) = match &args.tenant {
        None => (token.clone(), granted.expires_in()),
        Some(tenant) => Api::by(context, token.clone())?.exchanged(tenant.as_str()).await?,
    };
    if context.json {
        println!("{}", json!({"token": token, "expiresInSeconds": seconds.map(|most| most.as_secs())}));
    } else {
        println!("{token}");
    }
    Ok(())
}

type Granted = StandardTokenResponse<EmptyExtraTokenFields, BasicTokenType>;

/// The provider's token, once the person has signed in.
async fn sign_in(issuer: &str, args: &LoginArgs) -> Result<Granted, anyhow::Error> {
    // Whoever is asked for a token is asked by its own name alone: no redirect.
    let redirect = reqwest::redirect::Policy::none();
    let client = reqwest::Client::builder().timeout(ANSWERS_WITHIN).no_proxy().redirect(redirect).build()?;
    let described = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let answer = client.get(&described).send().await.and_then(reqwest::Response::error_for_status);
    let Description { issuer: said, token_endpoint, device_authorization_endpoint: device } =
        answer.context("asking the provider what it is")?.json().await.context("the provider's description")?;
    ensure!(said == issuer, "the provider describes itself as {said}: say so by --provider");
    let device = device
        .context("this provider has no device grant (RFC 8628): turn it on there, or sign in by a browser's flow")?;
    let oauth = BasicClient::new(ClientId::new(args.client.clone()))
        .set_device_authorization_url(DeviceAuthorizationUrl::new(device)?)
        .set_token_uri(TokenUrl::new(token_endpoint)?);
    let http = |request| send(client.clone(), request);
    let scopes = args.scope.split_whitespace().map(|scope| Scope::new(scope.to_owned()));
    let mut asked = oauth.exchange_device_code().add_scopes(scopes);
    for (name, value) in [
        ("acr_values", (!args.acr.is_empty()).then(|| args.acr.join(" "))),
        ("max_age", args.max_age.map(|seconds| seconds.to_string())),
        ("audience", args.audience.clone()),
    ] {
        if let Some(value) = value {
            asked = asked.add_extra_param(name, value);
        }
    }
    let begun: Result<StandardDeviceAuthorizationResponse, RequestTokenError<Unanswered, BasicErrorResponse>> =
        asked.request_async(&http).await;
    let device = match begun {
        Err(RequestTokenError::ServerResponse(refused)) => bail!("the provider refuses: {refused}"),
        begun => begun.context("the provider")?,
    };
    match device.verification_uri_complete() {
        Some(url) => {
            eprintln!("Open {}\nand check that it shows the code {}", url.secret(), device.user_code().secret())
        }
        None => {
            eprintln!("Open {}\nand enter the code {}", device.verification_uri().as_str(), device.user_code().secret())
        }
    }
    let granted: Result<Granted, RequestTokenError<Unanswered, DeviceCodeErrorResponse>> =
        oauth.exchange_device_access_token(&device).request_async(&http, tokio::time::sleep, None).await;
    match granted {
        Err(RequestTokenError::ServerResponse(refused)) => bail!("nobody signed in: {refused}"),
        granted => granted.context("the provider"),
    }
}
