//! The service under test, and the client that tests use.

use std::net::SocketAddr;

use contracts::Envelope;
use identity::people::{Links, Mode, People, Provider, SignUp, Tokens};
use identity::tokens::Signing;
use identity::{App, Config, Program};
use proto::identity::identity_service_client::IdentityServiceClient;
use proto::identity::{
    AcceptInvitationRequest, ApiKey, CreateApiKeyRequest, CreateGroupRequest, CreateInvitationRequest,
    CreateServiceAccountRequest, CreateTenantRequest, ExchangeTokenRequest, ExchangeTokenResponse, GetMeRequest, Group,
    Invitation, Member, Role, ServiceAccount, Tenant,
};
use proto::ops::FinishAdoptionRequest;
use proto::ops::tenant_service_client::TenantServiceClient;
use serde_json::value::RawValue;
use service::config::{Common, Database, Outbox, Pages};
use service::secret::Secret;
use service::{Lifecycle, Process, Service as _};
use testkit::{TestDatabase, TestIssuer, TestNats, unique, until};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

/// The service and its backing services, dropped in this order: the service first.
pub struct Harness {
    pub app: App,
    lifecycle: Lifecycle,
    pub nats: TestNats,
    pub database: TestDatabase,
    pub issuer: TestIssuer,
    pub channel: Channel,
    /// The operations port.
    pub ops: SocketAddr,
}

/// In which state the service is to be.
pub struct Settings {
    pub sign_up: Mode,
    pub sign_ups_an_hour: u32,
    /// Whether the tenants that other services know are adopted.
    pub adopted: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { sign_up: Mode::Open, sign_ups_an_hour: 1_000, adopted: true }
    }
}

/// A message of the stream.
pub struct Stored {
    pub envelope: Envelope<Box<RawValue>>,
    /// As it is in the stream.
    pub text: String,
}

impl Harness {
    pub async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    pub async fn start_with(settings: Settings) -> Self {
        let Settings { sign_up, sign_ups_an_hour, adopted } = settings;
        let (database, nats, issuer) = (database().await, TestNats::start().await, TestIssuer::new());
        let process = Process::new(Program::NAME, "test");
        let ops = service::ops::serve(&process, ([127, 0, 0, 1], 0).into(), None).await.unwrap();
        let mut config = config(&database, &nats, &issuer);
        config.people.sign_up = SignUp { sign_up, sign_ups_an_hour };
        let app = Program::start(&config, &process).await.unwrap();
        let channel = Channel::from_shared(format!("http://{}", app.address)).unwrap().connect().await.unwrap();
        let readiness = process.readiness.clone();
        let harness = Self { app, lifecycle: process.lifecycle, nats, database, issuer, channel, ops };
        until("what was taken away is known", || async { readiness.get().1["revocations"] }).await;
        if adopted {
            let mut tenants = TenantServiceClient::connect(format!("http://{ops}")).await.unwrap();
            let finish = FinishAdoptionRequest { reason: "there are none".to_owned() };
            tenants.finish_adoption(harness.operator(finish)).await.unwrap();
        }
        harness
    }

    /// Whoever has this token, of the provider's or of the fleet's.
    pub fn with(&self, token: &str) -> Client {
        self.client_with(Some(format!("Bearer {token}")))
    }

    pub fn client_with(&self, bearer: Option<String>) -> Client {
        Client { inner: IdentityServiceClient::new(self.channel.clone()), bearer, key: None }
    }

    /// A caller whose token has these claims: `role`, `scope`, `kind`, `act`.
    pub fn client_as(&self, tenant: &str, user: &str, claims: &serde_json::Value) -> Client {
        self.client_with(Some(self.issuer.bearer_with(tenant, user, claims)))
    }

    /// A person at the provider, with a verified address.
    pub fn person(&self, name: &str) -> Client {
        self.with(&self.issuer.person(name, &format!("{name}@x.example")))
    }

    /// A person who has signed a tenant up, with the fleet's token.
    pub async fn owner(&self, tenant: &str, name: &str) -> Client {
        self.person(name).sign_up(tenant).await.unwrap();
        self.token_of(name, tenant).await
    }

    /// A person with the fleet's token for a tenant.
    pub async fn token_of(&self, name: &str, tenant: &str) -> Client {
        let token = self.issuer.person(name, &format!("{name}@x.example"));
        let granted = self.client_with(None).exchange(&token, ACCESS_TOKEN, tenant, "").await.unwrap();
        self.with(&granted.access_token)
    }

    /// Somebody whom `owner` invites, with the fleet's token.
    pub async fn member(&self, owner: &Client, tenant: &str, (name, role): (&str, Role)) -> (Member, Client) {
        let invitation = owner.invite(&format!("{name}@x.example"), role).await.unwrap();
        let member = self.person(name).accept(&invitation.id).await.unwrap();
        (member, self.token_of(name, tenant).await)
    }

    /// A request to the operations port.
    pub fn operator<T>(&self, message: T) -> Request<T> {
        with(&self.issuer.operator("olga"), message)
    }

    /// Waits until everything committed by now is published.
    pub async fn events(&self) -> Vec<Stored> {
        until("all is published", || async { self.stored().await.len() as i64 == self.count("outbox").await }).await;
        self.stored().await
    }

    async fn stored(&self) -> Vec<Stored> {
        let stream = self.nats.jetstream_of("identity").await.get_stream("EVENTS_IDENTITY").await.unwrap();
        let state = stream.get_info().await.unwrap().state;
        let mut events = Vec::new();
        // An empty stream begins at 0, where there is no message.
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let envelope: Envelope<Box<RawValue>> = serde_json::from_slice(&message.payload).unwrap();
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            events.push(Stored { envelope, text });
        }
        events
    }

    /// Stops the service; nothing more may happen.
    pub async fn stop(&self) {
        assert_eq!(self.lifecycle.shut_down().await, None);
    }

    /// What no caller does: the clock has gone on.
    pub async fn sql(&self, sql: &'static str) {
        let mut admin = self.database.admin().await;
        assert!(sqlx::query(sql).execute(&mut admin).await.unwrap().rows_affected() > 0);
    }

    /// How many rows a table holds, of all tenants.
    pub async fn count(&self, table: &str) -> i64 {
        let mut admin = self.database.admin().await;
        let sql = format!("select count(*) from {table}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut admin).await.unwrap()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.lifecycle.stopping().cancel();
        // Whatever else a test is about: an event that cannot be published is a bug.
        testkit::assert_caught_up("identity", &self.database, &self.nats);
    }
}

pub fn config(database: &TestDatabase, nats: &TestNats, issuer: &TestIssuer) -> Config {
    Config {
        common: Common::on_loopback(issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE),
        database: Database { url: database.app.clone().into(), connections: 8 },
        outbox: Outbox {
            relay_database_url: database.relay.clone().into(),
            stream_max_age_days: u32::try_from(fleet::STREAM_DAYS).unwrap(),
            stream_replicas: 1,
            outbox_days: 1,
        },
        nats: service::nats::Login {
            url: nats.address(),
            credentials: Secret::in_file(nats.credentials("identity")).unwrap(),
        },
        pages: Pages { page_token_key: "a key for page tokens".into() },
        people: People {
            provider: Provider {
                provider: devstack::issuer::PROVIDER.to_owned(),
                provider_jwks: Some(issuer.people()),
                provider_audience: devstack::issuer::PROVIDER_AUDIENCE.to_owned(),
                provider_tokens: Tokens::AtJwt,
                provider_email_verified: "email_verified".to_owned(),
            },
            links: Links { invitation_link: "https://app.example/join/{id}".to_owned() },
            sign_up: SignUp { sign_up: Mode::Open, sign_ups_an_hour: 1_000 },
        },
        signing: Signing {
            signing_keys: Secret::in_file(issuer.signing_keys()).unwrap(),
            service_keys: Some(Secret::in_file(issuer.service_keys()).unwrap()),
        },
    }
}

/// A database of the service.
pub async fn database() -> TestDatabase {
    let migrate = async |owner: String| identity::MIGRATIONS.run("identity", &owner.into()).await.unwrap();
    TestDatabase::of("identity", &identity::MIGRATIONS.fingerprint("identity"), migrate).await
}

pub use authz::exchange::{ACCESS_TOKEN, API_KEY};

/// A caller.
#[derive(Clone)]
pub struct Client {
    pub inner: IdentityServiceClient<Channel>,
    bearer: Option<String>,
    key: Option<String>,
}

pub fn with<T>(bearer: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    request
}

impl Client {
    /// The next calls carry this idempotency key; otherwise each has a new one.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.bearer.as_ref().map_or_else(|| Request::new(()), |bearer| with(bearer, ()));
        let key = self.key.clone().unwrap_or_else(|| unique("key-"));
        if !key.is_empty() {
            request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
        }
        request.map(|()| message)
    }

    pub async fn create_tenant(&self, tenant: Tenant) -> Result<Tenant, Status> {
        let request = self.request(CreateTenantRequest { tenant: Some(tenant) });
        Ok(self.inner.clone().create_tenant(request).await?.into_inner())
    }

    pub async fn sign_up(&self, slug: &str) -> Result<Tenant, Status> {
        self.create_tenant(tenant(slug)).await
    }

    pub async fn invite(&self, email: &str, role: Role) -> Result<Invitation, Status> {
        let invitation = Invitation { email: email.to_owned(), role: role.into(), ..Invitation::default() };
        let request = self.request(CreateInvitationRequest { invitation: Some(invitation) });
        Ok(self.inner.clone().create_invitation(request).await?.into_inner())
    }

    pub async fn create_group(&self, members: &[&str]) -> Result<Group, Status> {
        let members = members.iter().map(|&member| member.to_owned()).collect();
        let group = Some(Group { name: "dispatchers".to_owned(), members, ..Group::default() });
        Ok(self.inner.clone().create_group(self.request(CreateGroupRequest { group })).await?.into_inner())
    }

    pub async fn accept(&self, id: &str) -> Result<Member, Status> {
        let request = self.request(AcceptInvitationRequest { id: id.to_owned() });
        Ok(self.inner.clone().accept_invitation(request).await?.into_inner())
    }

    pub async fn create_account(&self, role: Role) -> Result<ServiceAccount, Status> {
        let service_account = ServiceAccount { name: "report".to_owned(), role: role.into(), ..Default::default() };
        let request = self.request(CreateServiceAccountRequest { service_account: Some(service_account) });
        Ok(self.inner.clone().create_service_account(request).await?.into_inner())
    }

    /// A key of a new service account.
    pub async fn create_key(&self, role: Role, scopes: &[&str]) -> Result<ApiKey, Status> {
        self.key_of(&self.create_account(role).await?.id, scopes).await
    }

    pub async fn key_of(&self, account: &str, scopes: &[&str]) -> Result<ApiKey, Status> {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        let (service_account, name) = (account.to_owned(), "nightly".to_owned());
        let api_key = ApiKey { service_account, name, scopes, ..ApiKey::default() };
        let request = self.request(CreateApiKeyRequest { api_key: Some(api_key) });
        Ok(self.inner.clone().create_api_key(request).await?.into_inner())
    }

    /// The id of the user that calls.
    pub async fn user(&self) -> String {
        let me = self.inner.clone().get_me(self.request(GetMeRequest {})).await.unwrap().into_inner();
        me.actor.strip_prefix("user:").unwrap().to_owned()
    }

    pub async fn exchange(
        &self,
        token: &str,
        kind: &str,
        tenant: &str,
        scope: &str,
    ) -> Result<ExchangeTokenResponse, Status> {
        let request = ExchangeTokenRequest {
            grant_type: authz::exchange::TOKEN_EXCHANGE.to_owned(),
            subject_token: token.to_owned(),
            subject_token_type: kind.to_owned(),
            tenant: tenant.to_owned(),
            scope: scope.to_owned(),
            ..ExchangeTokenRequest::default()
        };
        self.exchange_by(request).await
    }

    pub async fn exchange_by(&self, request: ExchangeTokenRequest) -> Result<ExchangeTokenResponse, Status> {
        Ok(self.inner.clone().exchange_token(Request::new(request)).await?.into_inner())
    }

    /// A program that acts for a person, for a task if one is named: by the person's token of the provider, and the key.
    pub fn agent(person: &str, key: &str, task: &str) -> ExchangeTokenRequest {
        ExchangeTokenRequest {
            grant_type: authz::exchange::TOKEN_EXCHANGE.to_owned(),
            subject_token: person.to_owned(),
            subject_token_type: ACCESS_TOKEN.to_owned(),
            actor_token: key.to_owned(),
            actor_token_type: API_KEY.to_owned(),
            task: task.to_owned(),
            ..ExchangeTokenRequest::default()
        }
    }

    /// The token that it comes with.
    pub fn token(&self) -> String {
        self.bearer.as_ref().unwrap().strip_prefix("Bearer ").unwrap().to_owned()
    }
}

/// A tenant that signs up.
pub fn tenant(slug: &str) -> Tenant {
    Tenant {
        id: slug.to_owned(),
        name: "Acme Shipping".to_owned(),
        country: "DE".to_owned(),
        currency: "EUR".to_owned(),
        ..Tenant::default()
    }
}

/// The stable reason of a failed call.
pub fn reason<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = result.unwrap_err();
    status.get_details_error_info().map_or_else(|| format!("none: {status}"), |info| info.reason)
}
