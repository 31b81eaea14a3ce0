//! What a pool of [`pool_options`] gives to the next user of a connection.

use std::task::Poll;

use outbox::connections::pool_options;
use sqlx::Row as _;
use testkit::TestDatabase;

#[tokio::test]
async fn a_transaction_that_was_cut_off_while_it_began_is_not_the_next_users() {
    let database = TestDatabase::of("todo", "empty", async |_| {}).await;
    let db = pool_options(1).connect(&database.superuser).await.unwrap();
    // Each twice as late as the one before, until it is too late.
    for polls in std::iter::once(0).chain((0..40).map(|doubled| 1_u64 << doubled)) {
        // Dropped after so many turns, wherever it is by then.
        let mut left = polls;
        let cut = std::future::poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        });
        let begun = tokio::select! {
            biased;
            begun = db.begin() => { begun.unwrap(); true }
            () = cut => false,
        };
        let alone = "select transaction_timestamp() = statement_timestamp()";
        let alone: bool = sqlx::raw_sql(alone).fetch_one(&db).await.unwrap().get(0);
        assert!(alone, "after {polls} turns");
        if begun {
            return;
        }
    }
}
