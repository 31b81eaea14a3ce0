//! The words of a token exchange (RFC 8693), as its callers and identity say them.

/// The grant.
pub const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// The type of an access token: of the people's provider where it is exchanged, of the fleet's where it is issued.
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The type of an API key.
pub const API_KEY: &str = "urn:flotilla:token-type:api-key";
/// The type of an assertion by which a service says who it is.
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// How long a token of the fleet's lives at most, in seconds.
pub const LIFETIME_SECONDS: i64 = 600;
/// How every API key begins, so that a scanner for secrets finds it.
pub const API_KEY_PREFIX: &str = "flk_";
