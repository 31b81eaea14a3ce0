//! The schema of the service's database.

use service::migrations::{Migrations, Squashed};
use sqlx::migrate::Migrator;

static OWN: Migrator = sqlx::migrate!("./migrations");

/// The result of the migrations up to 0018, which also made the tables that crates ship.
const SQUASHED: Squashed = Squashed { to: 18, sql: include_str!("../schema/todo.sql"), shipped: [6, 2, 5] };

/// The service's own tables, and those that crates ship.
pub const MIGRATIONS: Migrations = Migrations {
    outbox: true,
    inbox: true,
    idempotency: true,
    tenants: true,
    squashed: Some(SQUASHED),
    ..Migrations::own(&OWN)
};
