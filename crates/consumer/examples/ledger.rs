//! A ledger of the orders that a shop tells of: one row for each, whatever is delivered twice.
//!
//!     psql $DATABASE_URL -f schema/inbox.sql
//!     DATABASE_URL=postgres://… NATS_URL=nats://… cargo run --features operate --example ledger

#![expect(clippy::disallowed_methods, reason = "the whole program is its edge: it reads the environment and makes ids")]

use consumer::{Config, Consumer, Event, Failure, Inbox, administer};
use futures::FutureExt as _;
use serde::Deserialize;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(Deserialize)]
struct Ordered {
    order: Uuid,
    customer: String,
}

/// The handler: a plain function. What it writes and that the event was handled are one transaction.
async fn on_ordered(tx: &mut PgConnection, event: &Event) -> Result<(), Failure> {
    let ordered: Ordered = serde_json::from_str(&event.data).map_err(|error| Failure::Reject(error.to_string()))?;
    sqlx::query("insert into ledger (order_id, customer) values ($1, $2)")
        .bind(ordered.order)
        .bind(&ordered.customer)
        .execute(tx)
        .await?;
    println!("entered {}", ordered.order);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), anyhow::Error> {
    let db = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    sqlx::query("create table if not exists ledger (order_id uuid primary key, customer text not null)")
        .execute(&db)
        .await?;
    let address: async_nats::ServerAddr = std::env::var("NATS_URL")?.parse()?;
    let login = |part: Option<&str>| part.unwrap_or_default().to_owned();
    let options =
        async_nats::ConnectOptions::new().user_and_password(login(address.username()), login(address.password()));
    let nats = options.connect(address).await?;

    let config = Config::ordered("EVENTS_SHOP", "ledger", "evt.shop.>", ["shop.ordered.v1"]);
    // Elsewhere the administration does this, with rights that no service has.
    let js = async_nats::jetstream::new(nats.clone());
    administer::streams(&js, &config.records, 1).await?;
    administer::durables(&js, &js, &config, None).await?;
    let inbox = Inbox::new(db);
    let stop = CancellationToken::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let asked = async {
        terminate.recv().await;
        stop.cancel();
    };
    let consumer = Consumer::new(nats, config);
    tokio::join!(consumer.run_in_order(stop.clone(), inbox, |tx, event| on_ordered(tx, event).boxed()), asked);
    Ok(())
}
