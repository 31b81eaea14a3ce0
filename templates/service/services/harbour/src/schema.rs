//! The schema of the service's database.

use service::migrations::Migrations;
use sqlx::migrate::Migrator;

static OWN: Migrator = sqlx::migrate!("./migrations");

/// The service's own tables, and those that crates ship.
pub const MIGRATIONS: Migrations = Migrations { outbox: true, inbox: true, idempotency: true, tenants: true, ..Migrations::own(&OWN) };
