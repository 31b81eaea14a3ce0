//! All SQL of the inbox: what was handled, who pulls, and which aggregates wait behind a dead letter.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgPool, Postgres, Transaction};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::event::{self, Event};

/// Where a consumer's effects are, and how its transactions begin.
#[derive(Debug, Clone)]
pub struct Inbox {
    /// The database of the effects, with the tables of `schema/inbox.sql`.
    pub db: PgPool,
    /// The setting that row-level security reads the tenant from, such as `app.tenant`: set for each transaction to the
    /// event's `tenant`.
    pub tenant_setting: Option<&'static str>,
    /// Who this process is, for the lease: new for each.
    pub holder: Uuid,
    /// For how many days handled events are remembered: longer than anybody may deliver one again. Default: 30.
    pub keep_days: i32,
}

/// What the inbox says of an event, in the transaction that is to handle it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// Nobody has handled it: it is this transaction's.
    New,
    /// It was handled, or is a stored letter.
    Handled,
    /// Another process pulls by now.
    Lost,
    /// Its aggregate waits behind this event, which is dead.
    Behind(String),
    /// It is dead itself, and its letter may not have been stored; holds the reason.
    Dead(String),
}

/// The result of declaring an event dead.
#[derive(Debug, PartialEq, Eq)]
pub enum Death {
    /// It is dead.
    Written,
    /// It was handled.
    Handled,
    /// Another process pulls by now.
    Lost,
}

/// The right to pull, and what the database knows of how far its effects go.
#[derive(Debug, Clone, FromRow)]
pub struct Lead {
    pub epoch: i64,
    /// The stream that `floor` is of, by when it was created.
    pub stream_created_at: Option<DateTime<Utc>>,
    /// Every event up to this sequence is settled. None in a database from before this was written down.
    pub floor: Option<i64>,
    /// Every replay up to this sequence of the stream of replays is settled. None as above.
    pub replays_floor: Option<i64>,
    /// How many events the stream has dropped unread, as far as anybody has noticed.
    pub trimmed_unread: i64,
    /// Since when this database server runs: another time is another server, or one that was down.
    pub server_since: DateTime<Utc>,
}

/// How far the effects go, as this process has last seen it in the database.
#[derive(Debug, Clone, Copy, Default)]
pub struct Written {
    pub floor: Option<i64>,
    pub replays_floor: Option<i64>,
    pub trimmed_unread: u64,
}

/// How far the effects go, as it is to be written down beside them.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    pub stream_created_at: DateTime<Utc>,
    pub sequence: u64,
    /// None as long as it is not known.
    pub replays: Option<u64>,
    /// How many events were found to be trimmed unread since it was last written down.
    pub trimmed_unread: Option<u64>,
}

impl Inbox {
    /// Begins a transaction. Whoever waits for it may be dropped at any time: sqlx would give the connection back to its pool with a BEGIN
    /// on its way, and whatever came next there would be part of a transaction that nobody ends.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let db = self.db.clone();
        let begun = TaskTracker::new().spawn(async move { db.begin().await });
        begun.await.map_err(|_| sqlx::Error::WorkerCrashed)?
    }

    /// An inbox in this database, without row-level security.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "each process is another holder of the lease")]
    pub fn new(db: PgPool) -> Self {
        Self { db, tenant_setting: None, holder: Uuid::now_v7(), keep_days: 30 }
    }

    /// Takes the lease if it is free or has run out.
    pub async fn lease(&self, consumer: &str, seconds: f64) -> Result<Option<Lead>, sqlx::Error> {
        // A database that does not know this consumer has none of its effects.
        sqlx::query_as(
            "insert into inbox_lease as held (consumer, holder, epoch, expires_at, floor, replays_floor) \
             values ($1, $2, 1, clock_timestamp() + make_interval(secs => $3), 0, 0) on conflict (consumer) do update \
             set holder = excluded.holder, epoch = held.epoch + 1, expires_at = excluded.expires_at \
             where held.holder = excluded.holder or held.expires_at < clock_timestamp() \
             returning epoch, stream_created_at, floor, replays_floor, trimmed_unread, \
             pg_postmaster_start_time() as server_since",
        )
        .bind(consumer)
        .bind(self.holder)
        .bind(seconds)
        .fetch_optional(&self.db)
        .await
    }

    /// Holds the lease for longer, and writes down how far the effects go. False when another process has it by now, or when
    /// this is not the database any more that it was: another server, or one in which the floor is not what was written last.
    pub async fn renew(
        &self,
        consumer: &str,
        lead: &Lead,
        seconds: f64,
        written: Written,
        floor: Option<Floor>,
    ) -> Result<bool, sqlx::Error> {
        let renewed = sqlx::query(
            "update inbox_lease set expires_at = clock_timestamp() + make_interval(secs => $3), \
             stream_created_at = coalesce($4, stream_created_at), floor = coalesce($5, floor), \
             trimmed_unread = greatest(trimmed_unread, $6), replays_floor = coalesce($9, replays_floor) \
             where consumer = $1 and epoch = $2 and pg_postmaster_start_time() = $7 and floor is not distinct from $8 \
             and replays_floor is not distinct from $10",
        )
        .bind(consumer)
        .bind(lead.epoch)
        .bind(seconds)
        .bind(floor.map(|floor| floor.stream_created_at))
        .bind(floor.map(|floor| floor.sequence.cast_signed()))
        .bind(floor.and_then(|floor| floor.trimmed_unread).unwrap_or_default().cast_signed())
        .bind(lead.server_since)
        .bind(written.floor)
        .bind(floor.and_then(|floor| floor.replays).map(u64::cast_signed))
        .bind(written.replays_floor)
        .execute(&self.db)
        .await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Gives the lease back, so that nobody need wait for it to run out.
    pub async fn give_up(
        &self,
        consumer: &str,
        lead: &Lead,
        written: Written,
        floor: Option<Floor>,
    ) -> Result<(), sqlx::Error> {
        self.renew(consumer, lead, 0.0, written, floor).await?;
        sqlx::query("update inbox_lease set expires_at = '-infinity' where consumer = $1 and epoch = $2")
            .bind(consumer)
            .bind(lead.epoch)
            .execute(&self.db)
            .await
            .map(drop)
    }

    /// The event that was noted last of those up to which all is settled, as JSON.
    pub async fn anchor(&self, consumer: &str) -> Result<Option<String>, sqlx::Error> {
        let anchor: Option<Option<String>> =
            sqlx::query_scalar("select anchor::text from inbox_lease where consumer = $1")
                .bind(consumer)
                .fetch_optional(&self.db)
                .await?;
        Ok(anchor.flatten())
    }

    /// Notes an event up to which all is settled, unless another process leads by now.
    pub async fn note_anchor(&self, consumer: &str, epoch: i64, anchor: &str) -> Result<(), sqlx::Error> {
        sqlx::query("update inbox_lease set anchor = $3::jsonb where consumer = $1 and epoch = $2")
            .bind(consumer)
            .bind(epoch)
            .bind(anchor)
            .execute(&self.db)
            .await
            .map(drop)
    }

    /// Claims an event for this transaction, and its other form with it, if it has one. A second transaction that claims
    /// either waits for the first to end. A replayed event is claimed although it is dead, once no event of its aggregate
    /// that died before it is left.
    pub async fn claim(
        &self,
        tx: &mut PgConnection,
        consumer: &str,
        epoch: i64,
        event: &Event,
    ) -> Result<Claimed, sqlx::Error> {
        if let Some(setting) = self.tenant_setting {
            sqlx::query("select set_config($1, $2, true)")
                .bind(setting)
                .bind(event.attribute("tenant"))
                .execute(&mut *tx)
                .await?;
        }
        let replayed = event.replay.is_some();
        let (leads, handled, itself, stored, first, claimed): (bool, bool, Option<String>, bool, Option<String>, bool) =
            sqlx::query_as(
                "with lead as (select from inbox_lease where consumer = $1 and epoch = $2), \
                 done as (select from inbox where consumer = $1 and source = $4 and event_id = any($5)), \
                 itself as (select number, reason, letter_stored from inbox_dead \
                 where consumer = $1 and source = $4 and event_id = any($5) order by letter_stored desc, number limit 1), \
                 first as (select event_id from inbox_dead d where consumer = $1 and aggregate_id = $3 \
                 and not (source = $4 and event_id = any($5)) \
                 and not ($6 and d.number > coalesce((select number from itself), 9223372036854775807)) \
                 order by number limit 1), \
                 claimed as (insert into inbox (consumer, source, event_id) select $1, $4, form from lead, unnest($5) form \
                 where not exists (select from first) and ($6 or not exists (select from itself)) \
                 on conflict do nothing returning 1), \
                 alive as (delete from inbox_dead where consumer = $1 and source = $4 and event_id = any($5) \
                 and (exists (select from claimed) or exists (select from done))) \
                 select exists (select from lead), exists (select from done), (select reason from itself), \
                 coalesce((select letter_stored from itself), false), (select event_id from first), \
                 (select count(*) = cardinality($5) from claimed)",
            )
            .bind(consumer)
            .bind(epoch)
            .bind(event.aggregate())
            .bind(event.attribute("source"))
            .bind(forms(event))
            .bind(replayed)
            .fetch_one(tx)
            .await?;
        Ok(match (itself, first) {
            _ if !leads => Claimed::Lost,
            _ if handled => Claimed::Handled,
            _ if claimed => Claimed::New,
            (Some(_), _) if stored && !replayed => Claimed::Handled,
            (Some(reason), _) if !replayed => Claimed::Dead(reason),
            (_, Some(id)) => Claimed::Behind(id),
            // Handled by a transaction that ended while this one waited.
            _ => Claimed::Handled,
        })
    }

    /// Writes down that an event is dead: its aggregate waits behind it. Not if it was handled, by a transaction of which nobody
    /// heard that it committed.
    pub async fn die(&self, consumer: &str, epoch: i64, event: &Event, reason: &str) -> Result<Death, sqlx::Error> {
        let (leads, handled): (bool, bool) = sqlx::query_as(
            // The lock makes this and a new lead wait for each other.
            "with lead as (select from inbox_lease where consumer = $1 and epoch = $2 for share), \
             done as (select from inbox where consumer = $1 and source = $4 and event_id = any($7)), \
             died as (insert into inbox_dead (consumer, aggregate_id, source, event_id, reason) \
             select $1, $3, $4, $5, $6 from lead where not exists (select from done) \
             on conflict (consumer, source, event_id) do update set reason = excluded.reason) \
             select exists (select from lead), exists (select from done)",
        )
        .bind(consumer)
        .bind(epoch)
        .bind(event.aggregate())
        .bind(event.attribute("source"))
        .bind(event.attribute("id"))
        .bind(reason.replace('\0', "\u{fffd}"))
        .bind(forms(event))
        .fetch_one(&self.db)
        .await?;
        Ok(match (leads, handled) {
            (false, _) => Death::Lost,
            (true, true) => Death::Handled,
            (true, false) => Death::Written,
        })
    }

    /// Remembers that a dead event's letter is stored: delivered again, it is no second letter.
    pub async fn remember_letter(&self, consumer: &str, source: &str, id: &str) -> Result<(), sqlx::Error> {
        sqlx::query("update inbox_dead set letter_stored = true where consumer = $1 and source = $2 and event_id = $3")
            .bind(consumer)
            .bind(source)
            .bind(id)
            .execute(&self.db)
            .await
            .map(drop)
    }

    /// Marks a discarded event as handled, without its effect. False when another process pulls by now.
    pub async fn discard(&self, consumer: &str, epoch: i64, event: &Event) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "with lead as (select from inbox_lease where consumer = $1 and epoch = $2 for share), \
             gone as (delete from inbox_dead where consumer = $1 and source = $3 and event_id = any($4) \
             and exists (select from lead)), \
             handled as (insert into inbox (consumer, source, event_id) select $1, $3, form from lead, unnest($4) form \
             on conflict do nothing) \
             select exists (select from lead)",
        )
        .bind(consumer)
        .bind(epoch)
        .bind(event.attribute("source"))
        .bind(forms(event))
        .fetch_one(&self.db)
        .await
    }

    /// Writes down that JetStream itself has given up on an event that was not handled: its aggregate waits behind it.
    /// Returns whether it did.
    pub async fn was_given_up(
        &self,
        consumer: &str,
        attributes: &BTreeMap<String, String>,
        reason: &str,
    ) -> Result<bool, sqlx::Error> {
        let name = |name: &str| attributes.get(name).map(String::as_str).unwrap_or_default();
        let aggregate = event::aggregate(attributes);
        let dead = sqlx::query(
            "insert into inbox_dead (consumer, aggregate_id, source, event_id, reason) select $1, $2, $3, $4, $5 \
             where not exists (select from inbox where consumer = $1 and source = $3 and event_id = $4) \
             on conflict (consumer, source, event_id) do update set reason = excluded.reason",
        )
        .bind(consumer)
        .bind(aggregate)
        .bind(name("source"))
        .bind(name("id"))
        .bind(reason.replace('\0', "\u{fffd}"))
        .execute(&self.db)
        .await?;
        Ok(dead.rows_affected() == 1)
    }

    /// Forgets up to 1,000 of what was handled long ago, the oldest at or behind `from` first. Returns how many, and when the
    /// last of them was handled.
    pub async fn sweep(
        &self,
        consumer: &str,
        from: Option<DateTime<Utc>>,
    ) -> Result<(i64, Option<DateTime<Utc>>), sqlx::Error> {
        sqlx::query_as(
            "with old as (select source, event_id from inbox where consumer = $1 \
             and handled_at >= coalesce($3, '-infinity') \
             and handled_at < clock_timestamp() - make_interval(days => $2) order by handled_at limit 1000), \
             gone as (delete from inbox using old where inbox.consumer = $1 \
             and (inbox.source, inbox.event_id) = (old.source, old.event_id) returning handled_at) \
             select count(*), max(handled_at) from gone",
        )
        .bind(consumer)
        .bind(self.keep_days)
        .bind(from)
        .fetch_one(&self.db)
        .await
    }
}

/// The ids under which an event is known: its own, and that of its other form, in one order whichever it is.
fn forms(event: &Event) -> Vec<&str> {
    let mut forms = vec![event.attribute("id"), event.attribute("twinof")];
    forms.retain(|form| !form.is_empty());
    forms.sort_unstable();
    forms.dedup();
    forms
}

/// Gives up all dead events of an aggregate, without their effect: the later ones are let through again. Returns whether
/// there were any. Where replays resolve letters, nobody needs this.
///
/// # Errors
/// The database refuses.
pub async fn unpark(db: &mut PgConnection, consumer: &str, aggregate_id: &str) -> Result<bool, sqlx::Error> {
    let gone = sqlx::query(
        "with gone as (delete from inbox_dead where consumer = $1 and aggregate_id = $2 returning source, event_id) \
         insert into inbox (consumer, source, event_id) select $1, source, event_id from gone \
         on conflict (consumer, source, event_id) do update set handled_at = clock_timestamp()",
    )
    .bind(consumer)
    .bind(aggregate_id)
    .execute(db)
    .await?;
    Ok(gone.rows_affected() > 0)
}

#[cfg(test)]
mod tests {
    use sqlx::Row as _;
    use sqlx::postgres::PgPoolOptions;
    use testkit::{TestDatabase, turns, until, within_turns};

    use super::*;

    async fn inbox(database: &TestDatabase) -> Inbox {
        let db = PgPool::connect(&database.superuser).await.unwrap();
        Inbox { db, tenant_setting: None, holder: Uuid::from_u128(1), keep_days: 30 }
    }

    async fn database() -> TestDatabase {
        TestDatabase::with(&[include_str!("../schema/inbox.sql")]).await
    }

    fn event(id: &str) -> Event {
        let attributes = [("id", id), ("source", "/shop"), ("partitionkey", "a")];
        Event {
            attributes: attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            data: "{}".to_owned(),
            nats_subject: "evt.shop.paid".to_owned(),
            stream_sequence: 1,
            stored_at: DateTime::UNIX_EPOCH,
            delivered: 1,
            replay: None,
        }
    }

    #[tokio::test]
    async fn a_transaction_that_is_cut_off_while_it_begins_leaves_nothing_open() {
        let database = database().await;
        let db = PgPoolOptions::new()
            .max_connections(1)
            .test_before_acquire(false)
            .connect(&database.superuser)
            .await
            .unwrap();
        let inbox = Inbox { db, ..inbox(&database).await };
        for turns in turns() {
            let begun = within_turns(turns, inbox.begin()).await.map(|begun| drop(begun.unwrap()));
            // As text: a prepared statement begins before it is executed.
            let alone = "select transaction_timestamp() = statement_timestamp()";
            let alone: bool = sqlx::raw_sql(alone).fetch_one(&inbox.db).await.unwrap().get(0);
            assert!(alone, "after {turns} turns, what comes next is in a transaction that nobody ends");
            if begun.is_some() {
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_lead_ends_when_its_database_is_another_server() {
        let database = database().await;
        let inbox = inbox(&database).await;
        let lead = inbox.lease("ledger", 60.0).await.unwrap().unwrap();
        let written = Written { floor: Some(0), replays_floor: Some(0), trimmed_unread: 0 };
        assert!(inbox.renew("ledger", &lead, 60.0, written, None).await.unwrap());
        // A promoted standby holds the same rows, and runs since another time.
        let elsewhere = Lead { server_since: lead.server_since - chrono::TimeDelta::seconds(1), ..lead };
        assert!(!inbox.renew("ledger", &elsewhere, 60.0, written, None).await.unwrap());
    }

    #[tokio::test]
    async fn whoever_leads_no_more_declares_nothing_dead_or_discarded_beside_the_next_lead() {
        let database = database().await;
        let inbox = inbox(&database).await;
        let lead = inbox.lease("ledger", 60.0).await.unwrap().unwrap();
        for declares_dead in [true, false] {
            let epoch: i64 = sqlx::query_scalar("select epoch from inbox_lease").fetch_one(&inbox.db).await.unwrap();
            assert!(epoch >= lead.epoch);
            let mut next = inbox.db.begin().await.unwrap();
            sqlx::query("update inbox_lease set epoch = epoch + 1").execute(&mut *next).await.unwrap();
            let event = event("1");
            let declaring = async {
                if declares_dead {
                    inbox.die("ledger", epoch, &event, "broken").await.unwrap() != Death::Lost
                } else {
                    inbox.discard("ledger", epoch, &event).await.unwrap()
                }
            };
            let leading = async {
                until("it waits for the next lead", || async {
                    let sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
                    sqlx::query_scalar::<_, i64>(sql).fetch_one(&inbox.db).await.unwrap() == 1
                })
                .await;
                next.commit().await.unwrap();
            };
            assert!(!tokio::join!(declaring, leading).0, "declares_dead: {declares_dead}");
        }
        let written: i64 =
            sqlx::query_scalar("select (select count(*) from inbox) + (select count(*) from inbox_dead)")
                .fetch_one(&inbox.db)
                .await
                .unwrap();
        assert_eq!(written, 0);
    }

    #[tokio::test]
    async fn what_was_handled_is_not_declared_dead_and_a_replay_of_it_lets_its_aggregate_go_on() {
        let database = database().await;
        let inbox = inbox(&database).await;
        let lead = inbox.lease("ledger", 60.0).await.unwrap().unwrap();
        let event = event("1");
        assert_eq!(inbox.die("ledger", lead.epoch, &event, "broken").await.unwrap(), Death::Written);
        // A commit of which nobody has heard.
        let handled = "insert into inbox (consumer, source, event_id) values ('ledger', '/shop', '1')";
        sqlx::query(handled).execute(&inbox.db).await.unwrap();
        assert_eq!(inbox.die("ledger", lead.epoch, &event, "broken").await.unwrap(), Death::Handled);
        let mut tx = inbox.db.begin().await.unwrap();
        assert_eq!(inbox.claim(&mut tx, "ledger", lead.epoch, &event).await.unwrap(), Claimed::Handled);
        tx.commit().await.unwrap();
        let dead: i64 = sqlx::query_scalar("select count(*) from inbox_dead").fetch_one(&inbox.db).await.unwrap();
        assert_eq!(dead, 0);
    }

    #[tokio::test]
    async fn only_what_was_handled_long_ago_is_forgotten_whatever_the_look_begins_with() {
        let database = database().await;
        let inbox = inbox(&database).await;
        sqlx::query(
            "insert into inbox (consumer, source, event_id, handled_at) \
             select c, '/shop', n::text, clock_timestamp() - make_interval(days => case when n % 2 = 0 then 31 else 29 end, secs => n) \
             from generate_series(1, 3000) n, unnest('{ledger,other}'::text[]) c",
        )
        .execute(&inbox.db)
        .await
        .unwrap();
        let (mut from, mut forgotten) = (None, Vec::new());
        loop {
            let (swept, up_to) = inbox.sweep("ledger", from).await.unwrap();
            forgotten.push(swept);
            from = up_to.or(from);
            if swept < 1_000 {
                break;
            }
        }
        assert_eq!(forgotten, [1_000, 500], "a bounded number at once");
        let left: Vec<(String, i64, bool)> = sqlx::query_as(
            "select consumer, count(*), bool_and(consumer = 'other' or handled_at > clock_timestamp() - interval '30 days') \
             from inbox group by consumer order by consumer",
        )
        .fetch_all(&inbox.db)
        .await
        .unwrap();
        assert_eq!(left, [("ledger".to_owned(), 1_500, true), ("other".to_owned(), 3_000, true)]);
    }
}
