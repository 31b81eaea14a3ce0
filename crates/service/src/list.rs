//! Lists of a service's rows: filtered, in an order, and page by page. A page reads one index from where the page before has ended, and ends
//! early, with a token, when it has examined [`MAX_EXAMINED`] rows: one tenant's question cannot occupy the database.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Postgres, QueryBuilder, Row as _};
use uuid::Uuid;

use crate::filter::{Field, Filter, How, Kind, Test, Value, camel};
use crate::{Failure, StoreError, TenantTx};

/// How many rows a page examines at most. (AIP-158 lets a page have fewer items than were asked for, or none.)
pub const MAX_EXAMINED: usize = 2_000;

/// How far a row's id and its `create_time` may be apart: within one command, or by a clock that was set back.
const ID_AND_CREATE_MILLIS: i64 = 60_000;

/// Nothing but an index will do: a plan that reads all that a tenant has, and sorts it, may seem cheap by statistics that are old.
const BY_INDEX: &str = "select set_config(name, 'off', true) from unnest(array['enable_sort', 'enable_bitmapscan', 'enable_seqscan', 'jit']) name";

/// What one list may be filtered and ordered by.
#[derive(Debug)]
pub struct Lists {
    /// The fields of filters.
    pub fields: &'static [Field],
    /// The indexes. Of those that give the order asked for, the first counts whose field the filter names. The last of each order has no field, so
    /// that it always counts. Whoever asks for no order has that of the first, the newest first.
    pub paths: &'static [Path],
    /// The condition of every row, of the table `t`.
    pub base: &'static str,
}

/// An index that begins with the tenant.
#[derive(Debug)]
pub struct Path {
    /// The time by which it orders.
    pub order: &'static str,
    /// The field between tenant and time, with its column.
    pub of: Option<(&'static str, &'static str)>,
    /// The table `t`, and what is joined to it.
    pub from: &'static str,
    /// The columns with the tenant.
    pub tenants: &'static [&'static str],
    /// The time, never null, as the index has it. None where ids of time give the order (UUIDv7).
    pub time: Option<&'static str>,
    /// The id, which comes last and makes the order one.
    pub id: &'static str,
}

/// A question to a list.
#[derive(Debug)]
pub struct Query {
    lists: &'static Lists,
    path: &'static Path,
    descending: bool,
    filter: Filter,
}

/// Where a row stands in an order: its time, none for the end of all times, and its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place(pub Option<DateTime<Utc>>, pub Uuid);

/// What a look found.
#[derive(Debug)]
pub struct Found<T> {
    /// The items, up to one more than were asked for.
    pub items: Vec<(Place, T)>,
    /// The last row that was examined, where as many were as may be.
    pub stopped: Option<Place>,
}

impl Lists {
    /// The question for what a filter holds for, in the order of `order_by`: a time, `due_time` or `dueTime`, and ` desc` for the latest first.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for another order.
    pub fn query(&'static self, filter: Filter, order_by: &str) -> Result<Query, Failure> {
        let mut words = order_by.split([' ', '\t']).filter(|word| !word.is_empty());
        let first = self.paths.first().map_or("", |path| path.order);
        let (name, descending) = match (words.next(), words.next(), words.next()) {
            (None, ..) => (first, true),
            (Some(name), None | Some("asc"), None) => (name, false),
            (Some(name), Some("desc"), None) => (name, true),
            _ => return Err(self.no_order()),
        };
        let is = |path: &&Path| path.order == name || camel(path.order) == name;
        let named = |path: &&Path| path.of.is_none_or(|(field, _)| equal(&filter, field).is_some());
        let path = self.paths.iter().find(|path| is(path) && named(path)).ok_or_else(|| self.no_order())?;
        Ok(Query { lists: self, path, descending, filter })
    }

    fn no_order(&self) -> Failure {
        let mut orders: Vec<_> = self.paths.iter().map(|path| camel(path.order)).collect();
        orders.dedup();
        Failure::invalid("order_by", format_args!("must be one of {}, with desc behind it or not", orders.join(", ")))
    }

    /// The test that a request's own field stands for: `status=OPEN` beside `filter`.
    ///
    /// # Errors
    /// INTERNAL when the list has no such field.
    pub fn test(&'static self, field: &str, how: How, value: &str) -> Result<Test, Failure> {
        let known = self.fields.iter().find(|known| known.name == field);
        let field = known.with_context(|| format!("a list has no field {field}")).map_err(Failure::internal)?;
        Ok(Test { field, how, value: Value::Text(value.to_owned()) })
    }
}

/// The test by which a field can only have one value.
fn equal<'a>(filter: &'a Filter, field: &str) -> Option<&'a Test> {
    let wanted = |test: &&Test| {
        // An empty text may be null, which no index finds as a text.
        let empty = test.value == Value::Text(String::new());
        test.field.name == field && [How::Equal, How::Has].contains(&test.how) && !empty
    };
    filter.certain().find(wanted)
}

impl Query {
    /// Looks for `size` items behind a place, and for one more, which shows whether there are more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn fetch<R, T>(
        &self,
        tx: &mut TenantTx,
        columns: &str,
        after: Option<&Place>,
        size: usize,
    ) -> Result<Found<T>, StoreError>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
        T: TryFrom<R, Error = StoreError>,
    {
        sqlx::query(BY_INDEX).execute(&mut **tx).await?;
        let mut sql = self.sql(columns, &tx.tenant().to_string(), after, size);
        // Its text is one of many: it takes no place among the statements that are kept.
        let rows: Vec<Listed<R>> = sql.build_query_as().persistent(false).fetch_all(&mut **tx).await?;
        let last = rows.last().filter(|row| row.number == MAX_EXAMINED as i64);
        let stopped = last.map(|row| row.place.clone());
        let fitting = rows.into_iter().filter(|row| row.fits);
        let items = fitting.map(|row| Ok((row.place, row.row.try_into()?))).collect::<Result<_, StoreError>>()?;
        Ok(Found { items, stopped })
    }

    fn sql(&self, columns: &str, tenant: &str, after: Option<&Place>, size: usize) -> QueryBuilder<Postgres> {
        let Self { lists, path, descending, filter } = self;
        let time = path.time.unwrap_or("null::timestamptz");
        let of = path.of.and_then(|(field, column)| Some((column, &equal(filter, field)?.value)));
        let key: Vec<_> = of.map(|(column, _)| column).into_iter().chain(path.time).chain([path.id]).collect();
        let by = |key: &[&str]| {
            let direction = if *descending { "desc" } else { "asc" };
            key.iter().map(|column| format!("{column} {direction}")).collect::<Vec<_>>().join(", ")
        };
        let mut sql = QueryBuilder::new("select *, nullif(list_time, 'infinity') as place_time from (select ");
        sql.push(columns);
        let column = of.map_or("null", |(column, _)| column);
        sql.push(format!(", {column} as list_of, {time} as list_time, {} as list_id, ", path.id));
        sql.push(format!("row_number() over (order by {}) as number, ", by(&key)));
        push_filter(&mut sql, filter);
        sql.push(format!(" as fits from {} where {}", path.from, lists.base));
        for column in path.tenants {
            sql.push(format!(" and {column} = ")).push_bind(tenant.to_owned());
        }
        // From where to where the index is read. The only value of the path's field is a part of the bounds and of the order, and not a condition of
        // its own: then no other index will do, whatever the statistics say.
        let Bounds { low, high, has_time } = self.bounds();
        let (from, to) = if *descending { (None, after) } else { (after, None) };
        let mut bound = |operator: &str, place: &Place, endless: &str| {
            sql.push(format!(" and ({}) {operator} (", key.join(", ")));
            if let Some((_, value)) = of {
                push_value(&mut sql, value);
                sql.push(", ");
            }
            match place.0 {
                _ if path.time.is_none() => {}
                Some(time) => {
                    sql.push_bind(time).push(", ");
                }
                None => {
                    sql.push(format!("'{endless}'::timestamptz, "));
                }
            }
            sql.push_bind(place.1).push(")");
        };
        match from {
            Some(from) => bound(">", from, "infinity"),
            None if low.is_some() || of.is_some() => bound(">=", &path.first(low), "-infinity"),
            None => {}
        }
        match to {
            Some(to) => bound("<", to, "infinity"),
            // Those without a time stand at its end.
            None if high.is_none() && has_time && path.time.is_some() => {
                bound("<", &Place(None, Uuid::nil()), "infinity")
            }
            None if high.is_some() || of.is_some() => bound("<=", &path.last(high), "infinity"),
            None => {}
        }
        sql.push(format!(" order by {} limit {MAX_EXAMINED}) examined", by(&key)));
        sql.push(format!(" where fits or number = {MAX_EXAMINED} order by "));
        let shown: Vec<_> =
            of.map(|_| "list_of").into_iter().chain(path.time.map(|_| "list_time")).chain(["list_id"]).collect();
        sql.push(by(&shown)).push(format!(" limit {}", size + 1));
        sql
    }

    fn bounds(&self) -> Bounds {
        let mut bounds = Bounds::default();
        for test in self.filter.certain().filter(|test| test.field.name == self.path.order) {
            bounds.has_time |= test.how != How::Unequal;
            let Value::Time(at) = test.value else { continue };
            if matches!(test.how, How::Equal | How::Greater | How::AtLeast) {
                bounds.low = bounds.low.max(Some(at));
            }
            if matches!(test.how, How::Equal | How::Less | How::AtMost) {
                bounds.high = Some(bounds.high.map_or(at, |high| high.min(at)));
            }
        }
        bounds
    }
}

/// What a filter says of the time of an order.
#[derive(Debug, Default)]
struct Bounds {
    low: Option<DateTime<Utc>>,
    high: Option<DateTime<Utc>>,
    /// Whether there is one.
    has_time: bool,
}

impl Path {
    /// Where the first row of a time stands, or before it.
    fn first(&self, at: Option<DateTime<Utc>>) -> Place {
        let id = match at {
            Some(at) if self.time.is_none() => millis(at.timestamp_millis() - ID_AND_CREATE_MILLIS),
            _ => 0,
        };
        Place(at, Uuid::from_u128(id))
    }

    /// Where the last row of a time stands, or behind it.
    fn last(&self, at: Option<DateTime<Utc>>) -> Place {
        let id = match at {
            Some(at) if self.time.is_none() => millis(at.timestamp_millis() + ID_AND_CREATE_MILLIS) | ((1 << 80) - 1),
            _ => u128::MAX,
        };
        Place(at, Uuid::from_u128(id))
    }
}

/// The beginning of an id of that time.
fn millis(unix: i64) -> u128 {
    u128::try_from(unix).unwrap_or_default().min((1 << 48) - 1) << 80
}

/// A filter as a condition that is true or false, never null.
fn push_filter(sql: &mut QueryBuilder<Postgres>, filter: &Filter) {
    let all = |sql: &mut QueryBuilder<Postgres>, filters: &[Filter], by: &str| {
        for (number, filter) in filters.iter().enumerate() {
            sql.push(if number == 0 { "(" } else { by });
            push_filter(sql, filter);
        }
        sql.push(")");
    };
    match filter {
        Filter::All(filters) if filters.is_empty() => {
            sql.push("true");
        }
        Filter::All(filters) => all(sql, filters, " and "),
        Filter::Any(filters) => all(sql, filters, " or "),
        Filter::Not(filter) => {
            sql.push("not ");
            push_filter(sql, filter);
        }
        Filter::Is(test) => push_test(sql, test),
    }
}

fn push_test(sql: &mut QueryBuilder<Postgres>, Test { field, how, value }: &Test) {
    let (column, operator) = (field.column, how.operator());
    match (field.kind, how) {
        (Kind::Texts, How::Present) => {
            sql.push(format!("(cardinality({column}) > 0)"));
        }
        (Kind::Texts, _) => {
            sql.push("(");
            push_value(sql, value);
            sql.push(format!(" = any({column}))"));
        }
        (Kind::Text, How::Present) => {
            sql.push(format!("(coalesce({column}, '') != '')"));
        }
        (Kind::Text, _) => {
            sql.push(format!("(coalesce({column}, '') {operator} "));
            push_value(sql, value);
            sql.push(")");
        }
        (Kind::Time, How::Present) => {
            sql.push(format!("({column} is not null)"));
        }
        (Kind::Time, How::Unequal) => {
            sql.push(format!("({column} is distinct from "));
            push_value(sql, value);
            sql.push(")");
        }
        (Kind::Choice(_) | Kind::Time, _) => {
            sql.push(format!("coalesce({column} {operator} "));
            push_value(sql, value);
            sql.push(", false)");
        }
    }
}

fn push_value(sql: &mut QueryBuilder<Postgres>, value: &Value) {
    match value {
        Value::Text(text) => sql.push_bind(text.clone()),
        Value::Time(time) => sql.push_bind(*time),
        Value::None => sql.push("null"),
    };
}

/// A row that a look read.
struct Listed<R> {
    row: R,
    place: Place,
    /// Whether the filter holds for it.
    fits: bool,
    /// Its number among those that were examined.
    number: i64,
}

impl<'r, R: FromRow<'r, PgRow>> FromRow<'r, PgRow> for Listed<R> {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            place: Place(row.try_get("place_time")?, row.try_get("list_id")?),
            fits: row.try_get("fits")?,
            number: row.try_get("number")?,
            row: R::from_row(row)?,
        })
    }
}
