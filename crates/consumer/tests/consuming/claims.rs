//! Handlers with transactions of their own: the claim decides, whatever they report.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use consumer::{Claim, Failure, NotClaimed};
use futures::FutureExt as _;
use sqlx::PgPool;

use crate::fixture::{Fixture, version};

/// Takes effect in a transaction of its own, unless the event is not its to handle.
async fn effect(db: &PgPool, claim: &Claim) -> Result<(), NotClaimed> {
    let mut tx = db.begin().await?;
    claim.take(&mut tx).await?;
    sqlx::query("insert into effect (aggregate, version) values ($1, $2)")
        .bind(claim.event().aggregate())
        .bind(version(claim.event()))
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

/// What a handler may do right or wrong, by the event's version and how often it was begun before.
async fn handle(db: PgPool, claim: Claim, before: usize) -> Result<(), Failure> {
    match version(claim.event()) {
        // Nothing is to be done.
        1 => Ok(()),
        // It forgets to report that it has committed.
        2 => Ok(effect(&db, &claim).await?),
        // It fails after that.
        3 => {
            effect(&db, &claim).await?;
            claim.committed();
            Err(Failure::Reject("too late".to_owned()))
        }
        // It tries a second transaction.
        4 => {
            effect(&db, &claim).await?;
            claim.committed();
            assert!(matches!(effect(&db, &claim).await, Err(NotClaimed::Committed)));
            Ok(())
        }
        // It takes a refusal for success.
        5 => {
            if effect(&db, &claim).await.is_ok() {
                claim.committed();
            }
            Ok(())
        }
        // Its backing service is unavailable at first, for more attempts than there are.
        6 if before == 0 => Err(Failure::Away("not yet".to_owned())),
        // It knows no more what it has handled.
        6 if before > 1 => Err(Failure::Reject("what is this".to_owned())),
        7 => Err(Failure::Reject("never".to_owned())),
        _ => {
            effect(&db, &claim).await?;
            claim.committed();
            Ok(())
        }
    }
}

#[tokio::test]
async fn an_event_takes_effect_once_whatever_its_handler_says_of_it() {
    let mut fixture = Fixture::new().await;
    let begun = Arc::new(Mutex::new(HashMap::<i32, usize>::new()));
    for round in 1..=2_usize {
        let consumer = fixture.deployed(Fixture::ordered(8, 1)).await;
        let (stop, inbox, db, begun) = (fixture.stop.clone(), fixture.inbox(), fixture.db.clone(), Arc::clone(&begun));
        fixture.consumers.spawn(async move {
            let handler = move |claim: Claim| {
                let mut begun = begun.lock().unwrap();
                let times = begun.entry(version(claim.event())).or_default();
                *times += 1;
                handle(db.clone(), claim, *times - 1).boxed()
            };
            consumer.run_claims(stop, inbox, handler).await;
        });
        if round == 1 {
            for version in 1..=7 {
                fixture.publish("a", version).await;
            }
        }
        fixture.drain().await;
        assert_eq!(fixture.effects().await["a"], [2, 3, 4, 5, 6], "round {round}");
        let letters: Vec<_> = fixture.letters().await.into_iter().map(|(id, ..)| id).collect();
        assert_eq!(letters, ["shop.paid.v2-a-7"], "what was handled, or is a letter, does not die again");
        let handled: i64 = sqlx::query_scalar("select count(*) from inbox").fetch_one(&fixture.db).await.unwrap();
        assert_eq!(handled, 6, "also what needed no transaction");
        fixture.anew().await;
        // The broker forgets what was acknowledged: all of it comes again.
        fixture.forget_acknowledgements().await;
    }
}
