//! The todos of a tenant as operators compare them: deleted ones too, each with the state that its events carry.

use contracts::TenantId;
use service::operators_aggregates::{Aggregates, Page, State};
use service::{OperatorTx, StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow};
use tracing::instrument;
use uuid::Uuid;

use crate::outgoing;
use crate::store::{COLUMNS, Row};
use crate::todo::Todo;

/// All todos.
pub(crate) struct Todos;

#[derive(FromRow)]
struct Stood {
    #[sqlx(flatten)]
    row: Row,
    deleted: bool,
}

fn state(Stood { row, deleted }: Stood) -> State {
    let (id, version) = row.at();
    let state = || Todo::try_from(row).map(|todo| outgoing::state(&todo)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

fn select(which: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "select {COLUMNS}, t.delete_time is not null as deleted from todo t where t.tenant = $1 and {which}"
    ))
}

#[tonic::async_trait]
impl Aggregates for Todos {
    fn kind(&self) -> &'static str {
        "todo"
    }

    #[instrument(target = "service::trace", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        let next: Option<String> =
            sqlx::query_scalar("select todo_next_tenant($1)").bind(after).fetch_one(&mut **tx).await?;
        next.map(|next| next.parse().map_err(|error| StoreError::inconsistent("tenant", next.clone(), error)))
            .transpose()
    }

    #[instrument(target = "service::trace", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
    async fn page(&self, tx: &mut TenantTx, page: Page) -> Result<Vec<State>, StoreError> {
        let Page { after, from, to, limit } = page;
        let tenant = tx.tenant();
        let which = "t.id > $2 and ($3::timestamptz is null or t.update_time >= $3) \
            and ($4::timestamptz is null or t.update_time < $4) order by t.id limit $5";
        let rows: Vec<Stood> = sqlx::query_as(select(which))
            .bind(tenant.as_str())
            .bind(after)
            .bind(from)
            .bind(to)
            .bind(limit)
            .fetch_all(&mut **tx)
            .await?;
        Ok(rows.into_iter().map(state).collect())
    }

    #[instrument(target = "service::trace", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        let tenant = tx.tenant();
        let rows: Vec<Stood> =
            sqlx::query_as(select("t.id = any($2)")).bind(tenant.as_str()).bind(ids).fetch_all(&mut **tx).await?;
        Ok(rows.into_iter().map(state).collect())
    }
}
