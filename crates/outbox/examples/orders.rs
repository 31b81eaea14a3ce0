//! A shop that takes orders and tells of each: the order and its event are one transaction, the relay does the rest.
//!
//!     psql $DATABASE_URL -f schema/outbox.sql -f schema/outbox_operations.sql -f schema/outbox_retention.sql   (or `outbox::migrations`)
//!     DATABASE_URL=postgres://… NATS_URL=nats://… cargo run --features operate --example orders -- 10

#![expect(clippy::disallowed_methods, reason = "the whole program is its edge: it reads the environment and makes ids")]

use outbox::{Handle, NewEvent, Relay, RelayConfig, Role};
use serde_json::json;
use sqlx::{PgPool, Transaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Takes an order: both rows, or neither.
async fn place_order(db: &PgPool, relay: &Handle, customer: &str) -> Result<Uuid, anyhow::Error> {
    let (order, event) = (Uuid::now_v7(), Uuid::now_v7());
    let (aggregate, time) = (order.to_string(), std::time::SystemTime::now());
    let payload = json!({
        "specversion": "1.0", "id": event, "source": "/shop", "type": "shop.ordered.v1", "subject": aggregate,
        "time": chrono::DateTime::<chrono::Utc>::from(time), "datacontenttype": "application/json",
        "partitionkey": aggregate, "sequence": format!("{:020}", 1), "tenant": "acme",
        "data": {"order": order, "customer": customer},
    })
    .to_string();
    let mut tx = db.begin().await?;
    sqlx::query("insert into orders (id, customer) values ($1, $2)")
        .bind(order)
        .bind(customer)
        .execute(&mut *tx)
        .await?;
    let new = NewEvent {
        id: event,
        tenant: "acme".to_owned(),
        aggregate_id: aggregate,
        subject: "evt.shop.ordered.v1.acme".to_owned(),
        traceparent: None,
        payload: payload.into_bytes(),
    };
    relay.commit(tx, vec![new], Transaction::commit).await?;
    Ok(order)
}

#[tokio::main]
async fn main() -> Result<(), anyhow::Error> {
    let orders: u32 = std::env::args().nth(1).unwrap_or_default().parse().unwrap_or(1);
    let db = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    sqlx::query("create table if not exists orders (id uuid primary key, customer text not null)").execute(&db).await?;
    let address: async_nats::ServerAddr = std::env::var("NATS_URL")?.parse()?;
    let login = |part: Option<&str>| part.unwrap_or_default().to_owned();
    let options =
        async_nats::ConnectOptions::new().user_and_password(login(address.username()), login(address.password()));
    let nats = options.connect(address).await?;

    let config = RelayConfig::new("EVENTS_SHOP", ["evt.shop.>"]);
    // Elsewhere the administration does this, with rights that no service has.
    outbox::administer::stream(&async_nats::jetstream::new(nats.clone()), &config.stream).await?;
    let (relay, stop) = (Relay::new(db.clone(), nats, config), CancellationToken::new());
    let handle = relay.handle();
    let work = async {
        for number in 0..orders {
            let order = place_order(&db, &handle, &format!("customer {number}")).await?;
            println!("ordered {order}");
        }
        let newest: i64 = sqlx::query_scalar("select coalesce(max(seq), 0) from outbox").fetch_one(&db).await?;
        let mut status = handle.status();
        let published = status.wait_for(|s| s.done >= newest || matches!(s.role, Role::Halted { .. })).await?.clone();
        println!("{published:?}");
        stop.cancel();
        Ok::<_, anyhow::Error>(())
    };
    tokio::join!(relay.run(stop.clone()), work).1
}
