//! The vessels and logbooks of a tenant as operators compare them: deleted ones too, each with its state as its events carry it.

use contracts::TenantId;
use service::operators_aggregates::{Aggregates, Page, State};
use service::{OperatorTx, StoreError, TenantTx};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow};
use uuid::Uuid;

use crate::logbook::Logbook;
use crate::vessel::Vessel;
use crate::{outgoing, store_logbook, store_vessel};

#[derive(FromRow)]
struct Stood<T> {
    #[sqlx(flatten)]
    row: T,
    deleted: bool,
}

/// All vessels.
pub(crate) struct Vessels;

/// All logbooks.
pub(crate) struct Logbooks;

fn vessel(Stood { row, deleted }: Stood<store_vessel::Row>) -> State {
    let (id, version) = row.at();
    let state = || Vessel::try_from(row).map(|vessel| outgoing::vessel(&vessel)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

fn logbook(Stood { row, deleted }: Stood<store_logbook::Row>) -> State {
    let (id, version) = row.at();
    let state = || Logbook::try_from(row).map(|logbook| outgoing::logbook(&logbook)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

async fn next_tenant(tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
    let next: Option<String> =
        sqlx::query_scalar("select harbour_next_tenant($1)").bind(after).fetch_one(&mut **tx).await?;
    next.map(|next| next.parse().map_err(|error| StoreError::inconsistent("tenant", next.clone(), error))).transpose()
}

/// A page of a table's rows, by id.
async fn page<R>(tx: &mut TenantTx, (table, columns): (&str, &str), page: Page) -> Result<Vec<Stood<R>>, StoreError>
where
    R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let Page { after, from, to, limit } = page;
    let tenant = tx.tenant();
    let sql = format!(
        "select {columns}, t.delete_time is not null as deleted from {table} t where t.tenant = $1 and t.id > $2 \
         and ($3::timestamptz is null or t.update_time >= $3) and ($4::timestamptz is null or t.update_time < $4) \
         order by t.id limit $5"
    );
    let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(after).bind(from).bind(to).bind(limit);
    Ok(rows.fetch_all(&mut **tx).await?)
}

/// Those of these ids that exist.
async fn these<R>(tx: &mut TenantTx, (table, columns): (&str, &str), ids: &[Uuid]) -> Result<Vec<Stood<R>>, StoreError>
where
    R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let tenant = tx.tenant();
    let sql = format!(
        "select {columns}, t.delete_time is not null as deleted from {table} t where t.tenant = $1 and t.id = any($2)"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(ids).fetch_all(&mut **tx).await?)
}

#[tonic::async_trait]
impl Aggregates for Vessels {
    fn kind(&self) -> &'static str {
        "vessel"
    }

    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        next_tenant(tx, after).await
    }

    async fn page(&self, tx: &mut TenantTx, asked: Page) -> Result<Vec<State>, StoreError> {
        Ok(page(tx, ("vessel", store_vessel::COLUMNS), asked).await?.into_iter().map(vessel).collect())
    }

    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        Ok(these(tx, ("vessel", store_vessel::COLUMNS), ids).await?.into_iter().map(vessel).collect())
    }
}

#[tonic::async_trait]
impl Aggregates for Logbooks {
    fn kind(&self) -> &'static str {
        "logbook"
    }

    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        next_tenant(tx, after).await
    }

    async fn page(&self, tx: &mut TenantTx, asked: Page) -> Result<Vec<State>, StoreError> {
        Ok(page(tx, ("logbook", store_logbook::COLUMNS), asked).await?.into_iter().map(logbook).collect())
    }

    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        Ok(these(tx, ("logbook", store_logbook::COLUMNS), ids).await?.into_iter().map(logbook).collect())
    }
}
