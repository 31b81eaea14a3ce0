//! The service's database. The only ways to a transaction are [`Db::begin`] and [`Db::read`], whose [`Call`] names the tenant, and
//! [`Db::begin_operator`], for what belongs to no tenant. Row-level security does the rest, with roles that cannot bypass it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use consumer::NotClaimed;
use contracts::TenantId;
use prost::Message as _;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::Failure;
use crate::call::{Call, Once};
use crate::connections::{Connections, Transaction};
use crate::deadline;
use crate::idempotency::StoredResponse;
use crate::secret::Secret;
use crate::tenants;

/// The database as the service's own role sees it.
#[derive(Debug, Clone)]
pub struct Db {
    connections: Arc<Connections>,
    /// The first statement of [`Db::begin_operator`].
    operator: Arc<str>,
    /// Whether it follows which tenants are suspended.
    knows_tenants: bool,
}

impl Db {
    /// The database of this service, with up to this many connections, made when they are needed.
    ///
    /// # Errors
    /// Fails when the address cannot be read.
    pub fn lazy(url: &Secret, service: &str, connections: u32) -> Result<Self, sqlx::Error> {
        Ok(Self {
            connections: Connections::lazy(url, service, connections)?,
            operator: format!(r#"begin; set local role "{service}_operator""#).into(),
            knows_tenants: false,
        })
    }

    /// The same, which refuses callers of suspended tenants ([`crate::tenants`]).
    #[must_use]
    pub fn knowing_tenants(self) -> Self {
        Self { knows_tenants: true, ..self }
    }

    /// Begins the transaction of a command: in its tenant, with its idempotency key or its event claimed.
    ///
    /// # Errors
    /// No connection is available, the key is in use or was used for something else, the event is not to be handled, or the caller's tenant is
    /// suspended.
    pub async fn begin(&self, call: &Call) -> Result<TenantTx, Failure> {
        let mut tx = self.tenant("begin", &call.caller.tenant).await?;
        match &call.once {
            Once::No => {}
            Once::Key(attempt) => tx.stored = attempt.claim(&mut tx).await?,
            Once::Event(claim) => claim.take(&mut tx).await.map_err(|error| match error {
                NotClaimed::Database(error) => error.into(),
                refused => Failure::internal(refused),
            })?,
        }
        // What the service does by itself goes on; so does a repeat, whose answer stands.
        if self.knows_tenants && call.caller.role.is_some() && tx.stored.is_none() {
            tenants::refuse_suspended(&mut tx, &call.caller.tenant).await?;
        }
        if tx.stored.is_some()
            && let Some(place) = tx.mark().await?
        {
            crate::notes::stands_at(place);
        }
        tx.once = call.once.clone();
        Ok(tx)
    }

    /// Begins a transaction that reads its tenant's rows, and cannot write.
    ///
    /// # Errors
    /// No connection is available.
    pub async fn read(&self, call: &Call) -> Result<TenantTx, Failure> {
        Ok(self.tenant("begin read only", &call.caller.tenant).await?)
    }

    /// The same for this tenant, for an operator.
    ///
    /// # Errors
    /// No connection is available.
    pub(crate) async fn read_as(&self, tenant: &TenantId) -> Result<TenantTx, sqlx::Error> {
        self.tenant("begin read only", tenant).await
    }

    /// Begins a transaction for what belongs to no tenant, or for a query over all tenants. It runs in the role `<service>_operator`, which
    /// may use the tables and functions that are listed for it, and sees no tenant's rows. The reason is for the trace.
    ///
    /// # Errors
    /// No connection is available, or the service's role may not take on the operator's.
    #[tracing::instrument(target = "service::trace", name = "begin operator", skip(self), err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "BEGIN"))]
    pub async fn begin_operator(&self, reason: &'static str) -> Result<OperatorTx, sqlx::Error> {
        Ok(OperatorTx(self.connections.begin(self.operator.to_string()).await?))
    }

    #[tracing::instrument(target = "service::trace", name = "begin", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "BEGIN"))]
    async fn tenant(&self, begin: &str, tenant: &TenantId) -> Result<TenantTx, sqlx::Error> {
        // One round trip. A tenant id contains only a-z, 0-9 and -.
        let mut begin = format!("{begin}; set local app.tenant = '{tenant}'");
        // Nobody waits for what a statement finds later. Not earlier than the call is answered: that the database gave up is no failure of it.
        if let Some(left) = crate::notes::left().filter(|left| *left < deadline::LONGEST / 2) {
            begin.push_str(&format!("; set local statement_timeout = {}", (left + deadline::AFTER).as_millis()));
        }
        let tx = self.connections.begin(begin).await?;
        Ok(TenantTx { tx, tenant: tenant.clone(), once: Once::No, stored: None })
    }

    /// Logs in by what its secret has become, until `stop`.
    pub(crate) async fn follow(&self, stop: &CancellationToken) {
        self.connections.login.follow(stop).await;
    }

    /// How many connections are in use.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.connections.in_use()
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// Fails when it does not.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        self.connections.ping().await
    }
}

/// A transaction of no tenant; rolled back unless committed.
#[derive(Debug)]
pub struct OperatorTx(Transaction);

impl OperatorTx {
    /// Commits. As with a tenant's transaction, a caller that goes on after a failed statement must not call this.
    ///
    /// # Errors
    /// Fails when the commit is not known to have happened.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.0.commit().await
    }
}

impl Deref for OperatorTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for OperatorTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

/// A transaction of one tenant; rolled back unless committed.
#[derive(Debug)]
pub struct TenantTx {
    tx: Transaction,
    tenant: TenantId,
    pub(crate) once: Once,
    /// The answer that an earlier call with the same key was given.
    stored: Option<Vec<u8>>,
}

impl TenantTx {
    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant.clone()
    }

    /// A place in the outbox behind which nothing stands that was committed before; none without an outbox, or an event.
    pub(crate) async fn mark(&mut self) -> Result<Option<i64>, sqlx::Error> {
        let mark = "select pg_sequence_last_value(oid) from (select to_regclass('outbox_seq') as oid) outbox where oid is not null";
        Ok(sqlx::query_scalar::<_, Option<i64>>(mark).fetch_optional(&mut *self.tx).await?.flatten())
    }

    /// The answer of an earlier call with the same key: the command returns it and does nothing. A command that does not ask for it cannot
    /// commit.
    ///
    /// # Errors
    /// The stored answer cannot be read.
    pub fn replayed<A: StoredResponse>(&mut self) -> Result<Option<A>, Failure> {
        let Some(stored) = self.stored.take() else { return Ok(None) };
        // Whatever the command does with it: nothing is stored a second time.
        self.once = Once::No;
        let message = A::Message::decode(stored.as_slice()).map_err(Failure::internal)?;
        A::from_message(message).map(Some)
    }

    /// Ends a transaction without an event or an answer to keep: one that has read, or has made a change that no event reports. A dropped
    /// transaction loses its changes, and the pool must check its connection.
    ///
    /// # Errors
    /// The database does not answer, or the call has a key or an event that would be lost.
    pub async fn end(self) -> Result<(), sqlx::Error> {
        if !matches!(self.once, Once::No) {
            return Err(sqlx::Error::Protocol("a command that takes effect once ends by its outbox".to_owned()));
        }
        self.commit().await
    }

    /// Ends it without an effect, so that the same call may begin another one: a transaction that is dropped holds its key for a moment more.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn give_up(self) -> Result<(), sqlx::Error> {
        self.tx.rollback().await
    }

    /// Commits, as its transaction does.
    ///
    /// # Errors
    /// Fails when the commit is not known to have happened.
    #[tracing::instrument(target = "service::trace", name = "commit", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "COMMIT"))]
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        if self.stored.is_some() {
            return Err(sqlx::Error::Protocol("a command went on although its key has an answer".to_owned()));
        }
        self.tx.commit().await?;
        if let Once::Event(claim) = &self.once {
            claim.committed();
        }
        Ok(())
    }
}

impl Deref for TenantTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.tx
    }
}

impl DerefMut for TenantTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.tx
    }
}
