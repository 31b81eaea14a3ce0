//! A database of its own for each test, copied from a template that holds the migrated schema.

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{Backing, unique};

/// A migrated database; dropped when the test process ends.
pub struct TestDatabase {
    /// Its name.
    pub name: String,
    /// The login of `<service>_app`.
    pub app: String,
    /// The login of `<service>_relay`.
    pub relay: String,
    /// The login of `<service>_owner`.
    pub owner: String,
    /// The login of the superuser, who sees all rows.
    pub superuser: String,
}

fn login(role: &str, password: &str, database: &str) -> String {
    let (_, host) = Backing::shared().postgres.split_once('@').unwrap();
    let (host, _) = host.split_once('/').unwrap();
    format!("postgres://{role}:{password}@{host}/{database}")
}

fn superuser(database: &str) -> String {
    let (server, _) = Backing::shared().postgres.rsplit_once('/').unwrap();
    format!("{server}/{database}")
}

impl TestDatabase {
    /// A database of a service of the fleet's table, with the schema that `migrate` makes as its owner. `fingerprint` is the same for the
    /// same schema.
    ///
    /// # Panics
    /// The table has no such database.
    pub async fn of(service: &str, fingerprint: &str, migrate: impl AsyncFnOnce(String)) -> Self {
        let backing = Backing::shared();
        let roles =
            backing.roles.get(service).unwrap_or_else(|| panic!("{service} has no database in the fleet's table"));
        let template = template((service, &roles.owner), fingerprint, migrate).await;
        let name = unique("test_");
        Backing::remove_at_the_end(&format!("database {name}"));
        let mut admin = PgConnection::connect(&backing.postgres).await.unwrap();
        // Only one copy of a template at a time, over all test processes.
        for sql in [
            "select pg_advisory_lock(7151)".to_owned(),
            format!("create database {name} template {template} owner {service}_owner"),
            "select pg_advisory_unlock(7151)".to_owned(),
            // A copy does not have the privileges of its template.
            format!("revoke all on database {name} from public"),
            format!("grant connect on database {name} to {service}_app, {service}_relay"),
        ] {
            admin.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        admin.close().await.unwrap();
        Self {
            app: login(&format!("{service}_app"), &roles.app, &name),
            relay: login(&format!("{service}_relay"), &roles.relay, &name),
            owner: login(&format!("{service}_owner"), &roles.owner, &name),
            superuser: superuser(&name),
            name,
        }
    }

    /// A database made by these scripts, owned by the superuser.
    ///
    /// # Panics
    /// A script fails.
    pub async fn with(scripts: &[&'static str]) -> Self {
        let name = unique("test_");
        Backing::remove_at_the_end(&format!("database {name}"));
        let mut admin = PgConnection::connect(&Backing::shared().postgres).await.unwrap();
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        admin.close().await.unwrap();
        let url = superuser(&name);
        let mut connection = PgConnection::connect(&url).await.unwrap();
        for script in scripts {
            connection.execute(*script).await.unwrap();
        }
        connection.close().await.unwrap();
        Self { app: url.clone(), relay: url.clone(), owner: url.clone(), superuser: url, name }
    }

    /// A connection as the superuser.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn admin(&self) -> PgConnection {
        PgConnection::connect(&self.superuser).await.unwrap()
    }
}

/// The template of exactly this schema; the first test that needs it makes it.
async fn template((service, password): (&str, &str), fingerprint: &str, migrate: impl AsyncFnOnce(String)) -> String {
    let backing = Backing::shared();
    // Partitions are made for the days to come: a template is good for its day.
    let name = format!("template_{service}_{fingerprint}_{}", devstack::supervisor::now().format("%Y%m%d"));
    let mut admin = PgConnection::connect(&backing.postgres).await.unwrap();
    admin.execute("select pg_advisory_lock(7151)").await.unwrap();
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(&name)
        .fetch_one(&mut admin)
        .await
        .unwrap();
    if !exists {
        let part = format!("{name}_part");
        admin.execute(AssertSqlSafe(format!("drop database if exists {part}"))).await.unwrap();
        admin.execute(AssertSqlSafe(format!("create database {part} owner {service}_owner"))).await.unwrap();
        migrate(login(&format!("{service}_owner"), password, &part)).await;
        admin.execute(AssertSqlSafe(format!("alter database {part} rename to {name}"))).await.unwrap();
    }
    admin.close().await.unwrap();
    name
}
