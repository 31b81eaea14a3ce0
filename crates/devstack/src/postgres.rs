//! A PostgreSQL cluster with its own port and data, never the system's.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use tokio::io::AsyncWriteExt as _;

use crate::certificates::Certificates;
use crate::process::{Program, Ready, tail};
use crate::stack_dir::{self, StackDir};

/// The file, beside the data, by which the server archives its log: pgBackRest's configuration.
pub const CONF: &str = "pgbackrest.conf";
/// What pgBackRest calls the cluster.
pub const STANZA: &str = "fleet";
/// The superuser of the cluster.
pub const SUPERUSER: &str = "flotilla";

/// A cluster.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// The folder of its programs.
    pub bin: PathBuf,
    /// Its data.
    pub data: PathBuf,
    /// Its port on loopback.
    pub port: u16,
    /// Whether what was committed outlives a power failure; tests do not need it.
    pub durable: bool,
    password: String,
    log: PathBuf,
    /// The configuration by which it archives its log, once there is one.
    archive: PathBuf,
    /// What it speaks TLS by, if it does.
    tls: Option<Certificates>,
}

/// Where a PostgreSQL is.
#[derive(Debug, Clone)]
pub struct Place {
    /// A name or an address, with a port.
    pub host: String,
    /// The authorities that its certificate must be of, where clients find the file; None: no TLS.
    pub authorities: Option<PathBuf>,
}

impl Postgres {
    /// The cluster of a stack, which may have no data yet.
    ///
    /// # Errors
    /// Its password cannot be read or made.
    pub fn of(home: &StackDir, bin: &Path, port: u16, durable: bool) -> Result<Self, anyhow::Error> {
        Ok(Self {
            bin: bin.to_owned(),
            data: home.data_of_user("postgres")?,
            port,
            durable,
            password: home.secret("postgres-password")?,
            log: home.log("postgres"),
            archive: home.data_of_user(CONF)?,
            tls: Certificates::of(home)?,
        })
    }

    /// Makes the cluster if it does not exist.
    ///
    /// # Errors
    /// The cluster cannot be made: the error names the cause.
    pub async fn prepare(home: &StackDir, bin: &Path, port: u16, durable: bool) -> Result<Self, anyhow::Error> {
        let cluster = Self::of(home, bin, port, durable)?;
        stack_dir::no_half_restore(&cluster.data)?;
        if !cluster.data.join("PG_VERSION").exists() {
            cluster.initdb().await?;
        }
        Ok(cluster)
    }

    async fn initdb(&self) -> Result<(), anyhow::Error> {
        self.make_data()?;
        // initdb reads the superuser's password from a file of its user's.
        let password_file = self.data.with_extension("password");
        stack_dir::give_secret(&password_file, self.password.as_bytes())?;
        let mut command = stack_dir::as_unprivileged(&self.bin.join("initdb"))?;
        command.arg("-D").arg(&self.data).args(["-U", SUPERUSER]);
        command.args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--pwfile"]).arg(&password_file);
        if !self.durable {
            command.arg("--no-sync");
        }
        let output = command.output().await.context("running initdb")?;
        std::fs::remove_file(&password_file)?;
        std::fs::write(&self.log, [&output.stdout[..], &output.stderr[..]].concat())?;
        if !output.status.success() {
            std::fs::remove_dir_all(&self.data).ok();
            bail!(
                "initdb failed ({}). Its log {} ends with:\n{}",
                output.status,
                self.log.display(),
                tail(&self.log, 8)
            );
        }
        Ok(())
    }

    /// Makes the empty folder of its data.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_data(&self) -> Result<(), anyhow::Error> {
        std::fs::create_dir_all(&self.data)
            .with_context(|| format!("making the data folder {}", self.data.display()))?;
        stack_dir::private(&self.data)?;
        stack_dir::give(&self.data)
    }

    /// The same, as clients see it through a proxy at this port.
    #[must_use]
    pub fn through(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    fn settings(&self) -> Vec<String> {
        vec![
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "max_connections=300".to_owned(),
            "shared_buffers=256MB".to_owned(),
            "timezone=UTC".to_owned(),
            "log_min_messages=warning".to_owned(),
        ]
    }

    /// The program to run.
    ///
    /// # Errors
    /// There is no user to run it as.
    pub fn program(&self) -> Result<Program, anyhow::Error> {
        let mut settings = self.settings();
        if self.durable {
            // Nothing is archived until a backup was asked for; from then on no segment of the log is removed before it is, and a
            // write is archived after a minute at the latest.
            let conf = self.archive.display().to_string().replace('%', "%%");
            settings.extend([
                "archive_mode=on".to_owned(),
                format!(
                    "archive_command=test ! -f '{conf}' || pgbackrest --config='{conf}' --stanza={STANZA} archive-push %p"
                ),
                "archive_timeout=60".to_owned(),
            ]);
        } else {
            settings.extend(["fsync=off", "full_page_writes=off"].map(ToOwned::to_owned));
        }
        if let Some(Certificates { of_postgres, .. }) = &self.tls {
            let file = |name| of_postgres.join(name).display().to_string();
            settings.extend([
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", file("tls.crt")),
                format!("ssl_key_file={}", file("tls.key")),
                format!("hba_file={}", file("pg_hba.conf")),
            ]);
        }
        let mut args = vec!["-D".to_owned(), self.data.display().to_string()];
        args.extend(flags(settings));
        Ok(Program {
            name: "postgres".to_owned(),
            path: self.bin.join("postgres"),
            args,
            env: Vec::new(),
            log: self.log.clone(),
            user: stack_dir::unprivileged()?,
            stop: Signal::SIGINT,
            ready: Ready::Postgres(self.superuser_url("postgres")),
            socket: None,
            alive: None,
        })
    }

    /// The same cluster with its data elsewhere.
    #[must_use]
    pub fn at(&self, data: PathBuf) -> Self {
        Self { data, ..self.clone() }
    }

    /// Replays the log of files that were put back, up to the moment that they name, and gives the superuser the password of this
    /// stack: the backup may be older than it.
    ///
    /// # Errors
    /// The log ends before that moment, or the files are damaged: the error shows what the server said.
    pub async fn recover(&self) -> Result<Recovered, anyhow::Error> {
        let mut log = OpenOptions::new().create(true).append(true).read(true).open(&self.log)?;
        let begins = log.metadata()?.len();
        // In single-user mode: nobody else reaches it, and it ends by itself. It keeps its new log to itself, or another attempt
        // would find a timeline on which nothing is; where nothing is archived at all, it would remove what waits for that.
        let mut single = stack_dir::as_unprivileged(&self.bin.join("postgres"))?;
        single.args(["--single", "-j", "-D"]).arg(&self.data);
        let mut settings = self.settings();
        // How far it came is read from its log.
        settings.extend(["archive_mode=on", "archive_command=", "log_min_messages=log"].map(ToOwned::to_owned));
        single.args(flags(settings));
        single.arg("postgres").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log.try_clone()?).kill_on_drop(true);
        let mut single = single.spawn().context("starting PostgreSQL")?;
        if let Some(mut input) = single.stdin.take() {
            let statement = format!("alter role {SUPERUSER} password '{}';\n\n", self.password);
            // One that has ended says why.
            input.write_all(statement.as_bytes()).await.ok();
        }
        let status = single.wait().await?;
        log.seek(SeekFrom::Start(begins))?;
        let (mut refused, mut newest, mut end) = (false, None, None);
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            refused = refused || line.contains("ERROR:");
            let after = |words| line.split_once(words).map(|(_, text)| text.to_owned());
            newest = after("last completed transaction was at log time ").or(newest);
            end = after("redo done at ").or(end);
        }
        if !status.success() || refused {
            bail!("it ended ({status}). Its log {} ends with:\n{}", self.log.display(), tail(&self.log, 8));
        }
        let mut control = stack_dir::as_unprivileged(&self.bin.join("pg_controldata"))?;
        let output = control.arg("-D").arg(&self.data).env("LC_ALL", "C").output().await.context("pg_controldata")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let says = |what: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
            line.map(str::trim).with_context(|| format!("pg_controldata names no {what}"))
        };
        // Where it goes on is further: it has begun a segment, and ended that too.
        let end = end.context("PostgreSQL does not say how far it has replayed its log")?;
        let (high, low) = end.split(' ').next().and_then(|end| end.split_once('/')).context("a place in the log")?;
        let place = u64::from_str_radix(high, 16)? << 32 | u64::from_str_radix(low, 16)?;
        Ok(Recovered {
            timeline: says("Latest checkpoint's TimeLineID")?.parse()?,
            segment: place / says("Bytes per WAL segment")?.parse::<u64>()?,
            newest,
        })
    }

    /// The login of the superuser.
    #[must_use]
    pub fn superuser_url(&self, database: &str) -> String {
        self.url(SUPERUSER, &self.password, database)
    }

    /// The superuser's password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The login of a role.
    #[must_use]
    pub fn url(&self, role: &str, password: &str, database: &str) -> String {
        self.place().url(role, password, database)
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> Place {
        let authorities = self.tls.as_ref().map(|tls| tls.folder.join("ca.crt"));
        Place { host: format!("127.0.0.1:{}", self.port), authorities }
    }

    /// The authorities for programs of its own user, if it speaks TLS.
    pub(crate) fn authorities(&self) -> Option<PathBuf> {
        self.tls.as_ref().map(|tls| tls.of_postgres.join("ca.crt"))
    }

    /// The same as [`provision`], as its superuser.
    ///
    /// # Errors
    /// The cluster refuses.
    pub async fn provision(&self, service: &str, passwords: &Roles, database: &str) -> Result<(), anyhow::Error> {
        provision(&self.superuser_url("postgres").parse()?, service, passwords, database).await
    }
}

/// The timeline of the log of a server that runs.
///
/// # Errors
/// It does not answer.
pub async fn timeline(superuser_url: &str) -> Result<u32, anyhow::Error> {
    let mut connection = PgConnection::connect(superuser_url).await.context("PostgreSQL")?;
    let timeline: i32 =
        sqlx::query_scalar("select timeline_id from pg_control_checkpoint()").fetch_one(&mut connection).await?;
    Ok(timeline.cast_unsigned())
}

/// How the archiving of the log of a server that runs goes.
///
/// # Errors
/// It does not answer.
pub async fn archiver(superuser_url: &str) -> Result<Archiver, anyhow::Error> {
    let mut connection = PgConnection::connect(superuser_url).await.context("PostgreSQL")?;
    // A failure that was made up for is none.
    let query = "select case when last_failed_time > coalesce(last_archived_time, '-infinity') \
                 then last_failed_time::text end as fails_since, last_archived_time::text as archived \
                 from pg_stat_archiver";
    Ok(sqlx::query_as(query).fetch_one(&mut connection).await?)
}

/// How the archiving of a log goes.
#[derive(sqlx::FromRow)]
pub struct Archiver {
    /// The last failure, where nothing was archived after it.
    pub fails_since: Option<String>,
    /// When a segment was archived last.
    pub archived: Option<String>,
}

/// Has a server that runs read its configuration and its certificate again. Connections go on.
///
/// # Errors
/// It does not answer.
pub async fn reload(superuser_url: &str) -> Result<(), anyhow::Error> {
    let mut connection = PgConnection::connect(superuser_url).await.context("PostgreSQL")?;
    sqlx::query("select pg_reload_conf()").execute(&mut connection).await?;
    Ok(())
}

/// Settings as a server's arguments.
fn flags(settings: Vec<String>) -> impl Iterator<Item = String> {
    settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting])
}

/// How far a log was replayed.
pub struct Recovered {
    /// The timeline that begins.
    pub timeline: u32,
    /// The number of the segment that was replayed last.
    pub segment: u64,
    /// When the newest change was committed, as the server says it; None where the log held none.
    pub newest: Option<String>,
}

impl Place {
    /// The login of a role there.
    #[must_use]
    pub fn url(&self, role: &str, password: &str, database: &str) -> String {
        let tls = self.authorities.as_ref().map(|file| format!("?sslmode=verify-full&sslrootcert={}", file.display()));
        format!("postgres://{role}:{password}@{}/{database}{}", self.host, tls.unwrap_or_default())
    }
}

/// Makes the roles of a service (owner, app, relay, operator) and its database, if they do not exist. The app role cannot
/// bypass row-level security, and no statement or idle transaction of it lasts long.
///
/// # Errors
/// The cluster refuses.
pub async fn provision(
    superuser: &PgConnectOptions,
    service: &str,
    passwords: &Roles,
    database: &str,
) -> Result<(), anyhow::Error> {
    // Statements here hold passwords.
    let superuser = superuser.clone().disable_statement_logging();
    let mut connection = PgConnection::connect_with(&superuser).await?;
    execute(&mut connection, "set log_statement = none".to_owned()).await?;
    execute(&mut connection, "set log_min_error_statement = panic".to_owned()).await?;
    // Two stacks may share a cluster and start at once.
    sqlx::query("select pg_advisory_lock(7150)").execute(&mut connection).await?;
    // The operator's role is taken on for one transaction at a time, for data of no tenant; nobody logs in as it.
    let login = |password: &str| format!("login password '{password}'");
    for (role, login) in [
        ("owner", login(&passwords.owner)),
        ("app", login(&passwords.app)),
        ("relay", login(&passwords.relay)),
        ("operator", "nologin".to_owned()),
    ] {
        let name = format!("{service}_{role}");
        let exists: bool = sqlx::query_scalar("select exists (select from pg_roles where rolname = $1)")
            .bind(&name)
            .fetch_one(&mut connection)
            .await?;
        let verb = if exists { "alter" } else { "create" };
        let limits = "nosuperuser nobypassrls nocreatedb nocreaterole";
        execute(&mut connection, format!("{verb} role {name} {limits} {login}")).await?;
    }
    execute(&mut connection, format!("alter role {service}_app noinherit")).await?;
    execute(&mut connection, format!("grant {service}_operator to {service}_app")).await?;
    for setting in ["statement_timeout = '5s'", "lock_timeout = '1s'", "idle_in_transaction_session_timeout = '5s'"] {
        execute(&mut connection, format!("alter role {service}_app set {setting}")).await?;
    }
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(database)
        .fetch_one(&mut connection)
        .await?;
    if !exists {
        execute(&mut connection, format!("create database {database} owner {service}_owner")).await?;
        execute(&mut connection, format!("revoke all on database {database} from public")).await?;
        execute(&mut connection, format!("grant connect on database {database} to {service}_app, {service}_relay"))
            .await?;
    }
    // Nobody needs another database, or objects that belong to no table.
    for database in ["postgres", "template1"] {
        execute(&mut connection, format!("revoke all on database {database} from public")).await?;
    }
    connection.close().await?;
    let mut connection = PgConnection::connect_with(&superuser.database(database)).await?;
    for function in ["lo_creat(integer)", "lo_create(oid)", "lo_from_bytea(oid, bytea)"] {
        execute(&mut connection, format!("revoke execute on function {function} from public")).await?;
    }
    connection.close().await?;
    Ok(())
}

/// The passwords of a service's roles.
#[derive(Clone, Serialize, Deserialize)]
pub struct Roles {
    /// Owns the schema; migrations run as it.
    pub owner: String,
    /// The service.
    pub app: String,
    /// The service's relay.
    pub relay: String,
}

/// The passwords of a service's roles, made once: those that the server is to take now.
///
/// # Errors
/// They cannot be read or made.
pub fn roles(home: &StackDir, service: &str) -> Result<Roles, anyhow::Error> {
    roles_by(service, |file| home.present(file))
}

/// The same, also those that are only staged.
pub(crate) fn newest_roles(home: &StackDir, service: &str) -> Result<Roles, anyhow::Error> {
    roles_by(service, |file| home.secret(file))
}

fn roles_by(service: &str, password: impl Fn(&str) -> Result<String, anyhow::Error>) -> Result<Roles, anyhow::Error> {
    let of = |role: &str| password(&password_file(service, role));
    Ok(Roles { owner: of("owner")?, app: of("app")?, relay: of("relay")? })
}

/// The roles of a service that log in.
pub const ROLES: [&str; 3] = ["owner", "app", "relay"];

/// The secret that is the password of a service's role.
#[must_use]
pub fn password_file(service: &str, role: &str) -> String {
    format!("postgres-{service}-{role}-password")
}

/// Writes the files that hold the logins of a service's roles, as its row names them: a line for each password that is or was valid, the newest
/// first.
///
/// # Errors
/// A file cannot be read or written.
pub fn write_urls(home: &StackDir, service: &fleet::Service, place: &Place) -> Result<(), anyhow::Error> {
    let name = service.name;
    for (role, file) in service.logins() {
        let passwords = home.lines(&password_file(name, role), || stack_dir::random_hex(24))?;
        let urls: Vec<_> = passwords.iter().map(|word| place.url(&format!("{name}_{role}"), word, name)).collect();
        home.write_secret(&file, &urls.join("\n"))?;
    }
    Ok(())
}

async fn execute(connection: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}
