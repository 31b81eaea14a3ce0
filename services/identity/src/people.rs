//! How people come in: their OpenID provider, the link by which they take up an invitation, and whether they sign tenants up.

use authz::{JwksError, JwksSource, People as Verifier, Typ};
use clap::{Args, ValueEnum};
use contracts::events::identity::InvitationId;

/// How many tenants one person signs up in an hour.
const OF_ONE: i64 = 5;
/// What stands for the invitation's id in a link.
const ID: &str = "{id}";

/// How people come in.
#[derive(Debug, Clone, Args)]
pub struct People {
    #[command(flatten)]
    pub provider: Provider,
    #[command(flatten)]
    pub links: Links,
    #[command(flatten)]
    pub sign_up: SignUp,
}

/// The OpenID provider.
#[derive(Debug, Clone, Args)]
pub struct Provider {
    /// The people's OpenID provider, by its issuer's URL.
    #[arg(long, env = "FLOTILLA_PROVIDER")]
    pub provider: String,
    /// Its key set, an http(s):// or file:// address; by default the one that its description names (OpenID Connect Discovery).
    #[arg(long, env = "FLOTILLA_PROVIDER_JWKS")]
    pub provider_jwks: Option<JwksSource>,
    /// The audience that its access tokens must name.
    #[arg(long, env = "FLOTILLA_PROVIDER_AUDIENCE", default_value = "flotilla-identity")]
    pub provider_audience: String,
    /// How it marks them: at+jwt (RFC 9068), or jwt, as its ID tokens are. With jwt, a token must name this audience alone, have scopes, be of
    /// another client than the audience, and have no claim of an ID token.
    #[arg(long, env = "FLOTILLA_PROVIDER_TOKENS", default_value = "at+jwt")]
    pub provider_tokens: Tokens,
    /// The claim by which it says, with true, that it has verified the e-mail address.
    #[arg(long, env = "FLOTILLA_PROVIDER_EMAIL_VERIFIED", default_value = "email_verified")]
    pub provider_email_verified: String,
}

/// How a provider marks its access tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tokens {
    /// By `typ: at+jwt`.
    #[value(name = "at+jwt")]
    AtJwt,
    /// By their audience alone.
    Jwt,
}

impl Provider {
    /// What verifies its tokens, without its keys yet.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn verifier(&self) -> Result<Verifier, JwksError> {
        let discovery = || JwksSource::Discovery(self.provider.clone());
        let typ = match self.provider_tokens {
            Tokens::AtJwt => Typ::AccessToken,
            Tokens::Jwt => Typ::Jwt,
        };
        let keys = self.provider_jwks.clone().unwrap_or_else(discovery);
        let people = Verifier::new(keys, &self.provider, (&self.provider_audience, typ))?;
        Ok(people.verified_by(&self.provider_email_verified))
    }
}

/// What a link to an invitation looks like. It holds the id alone: whoever has the link must be the one who is invited.
#[derive(Debug, Clone, Args)]
pub struct Links {
    /// The address at which people take up invitations, with {id} where the invitation's id belongs: of a page of yours, or of the API.
    #[arg(long, env = "FLOTILLA_INVITATION_LINK", value_parser = link)]
    pub invitation_link: String,
}

impl Links {
    /// The link to an invitation.
    #[must_use]
    pub fn to(&self, invitation: InvitationId) -> String {
        self.invitation_link.replacen(ID, &invitation.to_string(), 1)
    }
}

fn link(text: &str) -> Result<String, &'static str> {
    let is_one = (text.starts_with("https://") || text.starts_with("http://")) && text.matches(ID).count() == 1;
    if is_one { Ok(text.to_owned()) } else { Err("must be an http(s):// address with {id} in it, once") }
}

/// Whether people sign tenants up by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Everybody whom the provider knows.
    Open,
    /// Nobody.
    Closed,
}

/// The rules of signing up.
#[derive(Debug, Clone, Args)]
pub struct SignUp {
    /// Whether people sign tenants up by themselves.
    #[arg(long, env = "FLOTILLA_SIGN_UP", default_value = "closed")]
    pub sign_up: Mode,
    /// How many tenants all of them together sign up in an hour.
    #[arg(long, env = "FLOTILLA_SIGN_UPS_AN_HOUR", default_value = "60")]
    pub sign_ups_an_hour: u32,
}

/// Why nobody signs up now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// By configuration.
    #[error("nobody signs up here by themselves: ask whoever runs this fleet")]
    Closed,
    /// The tenants that other services know are not adopted yet: whoever signed one of them up would own it.
    #[error("nobody signs up here yet: whoever runs this fleet has to run `flotilla identity adopt` first")]
    NotAdopted,
    /// Too many did.
    #[error("too many tenants signed up within the last hour: try again later")]
    TooMany,
}

impl SignUp {
    /// Whether a person may sign one more up: by whether the tenants of other services are adopted, how many all signed up within the last
    /// hour, and how many this one did.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn admits(&self, adopted: bool, (all, own): (i64, i64)) -> Result<(), Refused> {
        match self.sign_up {
            Mode::Closed => Err(Refused::Closed),
            Mode::Open if !adopted => Err(Refused::NotAdopted),
            Mode::Open if all >= i64::from(self.sign_ups_an_hour) || own >= OF_ONE => Err(Refused::TooMany),
            Mode::Open => Ok(()),
        }
    }
}
