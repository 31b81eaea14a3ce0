//! The OpenID provider that people come from.

use authz::{JwksError, JwksSource, People};
use clap::Args;

/// Which provider it is.
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
}

impl Provider {
    /// What verifies its tokens, without its keys yet.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn verifier(&self) -> Result<People, JwksError> {
        let discovery = || JwksSource::Discovery(self.provider.clone());
        People::new(self.provider_jwks.clone().unwrap_or_else(discovery), &self.provider, &self.provider_audience)
    }
}
