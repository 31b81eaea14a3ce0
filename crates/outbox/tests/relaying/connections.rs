//! What a pool of [`pool_options`] gives to the next user of a connection.

use outbox::connections::pool_options;
use sqlx::Row as _;
use testkit::{TestDatabase, turns, within_turns};

#[tokio::test]
async fn a_transaction_that_was_cut_off_while_it_began_is_not_the_next_users() {
    let database = TestDatabase::of("todo", "empty", async |_| {}).await;
    let db = pool_options(1).connect(&database.superuser).await.unwrap();
    for turns in turns() {
        let begun = within_turns(turns, db.begin()).await.map(|begun| drop(begun.unwrap()));
        let alone = "select transaction_timestamp() = statement_timestamp()";
        let alone: bool = sqlx::raw_sql(alone).fetch_one(&db).await.unwrap().get(0);
        assert!(alone, "after {turns} turns");
        if begun.is_some() {
            return;
        }
    }
}
