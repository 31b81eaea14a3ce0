//! Access tokens for tests, from an issuer whose keys are in a file.

use std::path::PathBuf;

use authz::OperatorRole;
use chrono::TimeDelta;
use devstack::StackDir;
use devstack::issuer::{ISSUER, Issuer, write_service_keys};
use serde_json::Value;

use crate::unique;

/// An issuer with its own folder; dropping it removes the folder.
pub struct TestIssuer {
    folder: PathBuf,
    issuer: Issuer,
    people: Issuer,
}

impl TestIssuer {
    /// A new issuer with a new key.
    ///
    /// # Panics
    /// Its folder cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a folder and a key")]
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(unique("flotilla-issuer-"));
        let home = StackDir::open(&folder).unwrap();
        let (issuer, people) = (Issuer::open(&home).unwrap(), Issuer::of_people(&home).unwrap());
        write_service_keys(&home).unwrap();
        for (file, issuer) in [("jwks.json", &issuer), ("people.json", &people)] {
            std::fs::write(folder.join(file), serde_json::to_vec(issuer.jwks()).unwrap()).unwrap();
        }
        Self { folder, issuer, people }
    }

    /// The file of the keys of the people's provider.
    ///
    /// # Panics
    /// Never: this made the path.
    #[must_use]
    pub fn people(&self) -> authz::JwksSource {
        authz::JwksSource::File(self.folder.join("people.json"))
    }

    /// The file of the keys that sign.
    #[must_use]
    pub fn signing_keys(&self) -> PathBuf {
        self.folder.join("secrets").join(fleet::SIGNING_KEYS)
    }

    /// The file of the public keys of services.
    #[must_use]
    pub fn service_keys(&self) -> PathBuf {
        self.folder.join("secrets").join(fleet::SERVICE_KEYS)
    }

    /// The file of the keys by which a service says who it is.
    ///
    /// # Panics
    /// The fleet's table has no such service, or it calls nobody.
    #[must_use]
    pub fn service_key(&self, service: &str) -> PathBuf {
        self.folder.join("secrets").join(fleet::named(service).unwrap().service_key().unwrap())
    }

    /// What a service with the key of `signs` sends to say that it is `service`.
    ///
    /// # Panics
    /// It cannot be signed.
    #[must_use]
    pub fn assertion(&self, signs: &str, service: &str) -> String {
        let key = std::fs::read_to_string(self.service_key(signs)).unwrap();
        authz::assertion(&authz::SigningKeys::read(&key).unwrap(), &service.parse().unwrap(), ISSUER).unwrap()
    }

    /// A provider's access token of a person with this e-mail address, verified.
    ///
    /// # Panics
    /// The token cannot be signed.
    #[must_use]
    pub fn person(&self, subject: &str, email: &str) -> String {
        self.person_with(subject, &serde_json::json!({"email": email, "email_verified": true, "name": subject}))
    }

    /// The same with these claims.
    ///
    /// # Panics
    /// The token cannot be signed.
    #[must_use]
    pub fn person_with(&self, subject: &str, claims: &Value) -> String {
        self.people.person_token(subject, claims, TimeDelta::minutes(10)).unwrap()
    }

    /// The file of its keys.
    ///
    /// # Panics
    /// Never: this made the path.
    #[must_use]
    pub fn jwks(&self) -> authz::JwksSource {
        authz::JwksSource::File(self.folder.join("jwks.json"))
    }

    /// The value of an `Authorization` header with these further claims: `role`, `scope`, `kind`, `act`.
    ///
    /// # Panics
    /// The token cannot be signed.
    #[must_use]
    pub fn bearer_with(&self, tenant: &str, user: &str, claims: &Value) -> String {
        format!("Bearer {}", self.issuer.token_with(tenant, user, claims, TimeDelta::minutes(10)).unwrap())
    }

    /// The value of an `Authorization` header, of an owner of the tenant.
    ///
    /// # Panics
    /// The token cannot be signed.
    #[must_use]
    pub fn bearer(&self, tenant: &str, user: &str) -> String {
        format!("Bearer {}", self.issuer.token(tenant, user, TimeDelta::minutes(10)).unwrap())
    }

    /// The same for an operator.
    ///
    /// # Panics
    /// The token cannot be signed.
    #[must_use]
    pub fn operator(&self, user: &str) -> String {
        self.operator_as(user, OperatorRole::Operator)
    }

    /// The same with this role.
    ///
    /// # Panics
    /// The token cannot be signed.
    #[must_use]
    pub fn operator_as(&self, user: &str, role: OperatorRole) -> String {
        format!("Bearer {}", self.issuer.operator_token(user, role, TimeDelta::minutes(10)).unwrap())
    }

    /// The same with these claims alone.
    ///
    /// # Panics
    /// The token cannot be signed.
    #[must_use]
    pub fn operator_with(&self, user: &str, claims: &Value) -> String {
        format!("Bearer {}", self.issuer.operator_token_with(user, claims, TimeDelta::minutes(10)).unwrap())
    }

    /// What a service must not take for a caller: nothing, nonsense, and tokens that are expired, of another issuer, for another
    /// audience, or of what is no tenant.
    ///
    /// # Panics
    /// The tokens cannot be signed.
    #[must_use]
    pub fn refused(&self) -> Vec<Option<String>> {
        let stranger = Self::new();
        vec![
            None,
            Some("Bearer nonsense".to_owned()),
            Some(self.expired("acme", "ann")),
            Some(stranger.bearer("acme", "ann")),
            Some(self.bearer("Acme", "ann")),
            Some(self.bearer("", "ann")),
            Some(self.operator("olga")),
        ]
    }

    /// An expired one.
    ///
    /// # Panics
    /// The token cannot be signed.
    #[must_use]
    pub fn expired(&self, tenant: &str, user: &str) -> String {
        format!("Bearer {}", self.issuer.token(tenant, user, TimeDelta::minutes(-10)).unwrap())
    }
}

impl Drop for TestIssuer {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
