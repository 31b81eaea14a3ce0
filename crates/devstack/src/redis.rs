//! One Redis, which gateways share their callers' rates in. It keeps nothing on disk, and one login reaches nothing but rates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use service::shared_rates::{PREFIX, client};

use crate::certificates::Certificates;
use crate::install::Unpacked;
use crate::process::{Program, Ready};
use crate::stack_dir::{StackDir, write_secret};

/// The user that gateways log in as.
pub const USER: &str = "flotilla";
/// The file of its address, among the secrets of a stack.
pub const URL: &str = "redis-url";
/// The secret with its password.
const PASSWORD: &str = "redis-password";
/// What the login may do: spend units, by the one script, and look whether Redis is there.
const MAY: &str = "-@all +hello +auth +client|setname +select +ping +evalsha +script|load +time +get +set";
/// Who sees how Redis is, has it read its certificate again, and may change its settings; gateways do not know it.
const ADMINISTRATION: &str = "administration";
/// The secret with that login's password.
const ADMINISTRATION_PASSWORD: &str = "redis-administration-password";
/// The file of its address, likewise.
pub const ADMINISTRATION_URL: &str = "redis-administration-url";
/// The settings of every development Redis, here and in a cluster.
const SETTINGS: &str = include_str!("../../../k8s/overlays/dev/redis.conf");

/// A Redis.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Its port on loopback.
    pub port: u16,
    program: Unpacked,
    config: PathBuf,
    log: PathBuf,
    password: String,
    administration: String,
    tls: bool,
}

impl Redis {
    /// Writes its configuration; with certificates it speaks TLS alone.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare(
        home: &StackDir,
        program: &Unpacked,
        port: u16,
        certificates: Option<&Certificates>,
    ) -> Result<Self, anyhow::Error> {
        let (password, data) = (home.secret(PASSWORD)?, home.path("data/redis"));
        std::fs::create_dir_all(&data)?;
        let users = home.write_secret("redis-users.acl", &users(home)?)?;
        let quoted = |path: &Path| format!("\"{}\"", path.display());
        let listens = match certificates {
            None => format!("port {port}\n"),
            Some(Certificates { folder, .. }) => {
                let file = |name: &str| quoted(&folder.join(name));
                let (certificate, key, authority) = (file("tls.crt"), file("tls.key"), file("ca.crt"));
                format!(
                    "port 0\ntls-port {port}\ntls-cert-file {certificate}\ntls-key-file {key}\n\
                     tls-ca-cert-file {authority}\ntls-auth-clients no\n"
                )
            }
        };
        let config = home.path("conf/redis.conf");
        let (users, data) = (quoted(&users), quoted(&data));
        let text = format!("{SETTINGS}bind 127.0.0.1\n{listens}aclfile {users}\ndir {data}\n");
        write_secret(&config, text.as_bytes()).context("writing redis.conf")?;
        let (administration, tls) = (home.secret(ADMINISTRATION_PASSWORD)?, certificates.is_some());
        let server =
            Self { port, program: program.clone(), config, log: home.log("redis"), password, administration, tls };
        let place = format!("127.0.0.1:{port}");
        home.write_secret(ADMINISTRATION_URL, &address((ADMINISTRATION, &server.administration), &place, tls))?;
        Ok(server)
    }

    /// The program to run.
    #[must_use]
    pub fn program(&self) -> Program {
        Program {
            name: "redis".to_owned(),
            path: self.program.path.clone(),
            args: vec![self.config.display().to_string()],
            env: self.program.env.clone(),
            log: self.log.clone(),
            user: None,
            stop: Signal::SIGTERM,
            ready: Ready::Listening(self.port),
            socket: None,
            alive: None,
        }
    }

    /// Its address through `port`, with its login.
    #[must_use]
    pub fn url(&self, port: u16) -> String {
        address((USER, &self.password), &format!("127.0.0.1:{port}"), self.tls)
    }
}

/// The address of a Redis elsewhere, with the login of this home.
///
/// # Errors
/// The password cannot be drawn.
pub fn url(home: &StackDir, place: &str, tls: bool) -> Result<String, anyhow::Error> {
    Ok(address((USER, &home.secret(PASSWORD)?), place, tls))
}

/// The same with the login of its administration.
///
/// # Errors
/// The password cannot be drawn.
pub fn administration_url(home: &StackDir, place: &str, tls: bool) -> Result<String, anyhow::Error> {
    Ok(address((ADMINISTRATION, &home.secret(ADMINISTRATION_PASSWORD)?), place, tls))
}

fn address((user, password): (&str, &str), place: &str, tls: bool) -> String {
    let scheme = if tls { "rediss" } else { "redis" };
    format!("{scheme}://{user}:{password}@{place}")
}

/// Has the Redis at this address read its certificate again; trusts the authorities of a PEM file.
///
/// # Errors
/// It does not answer, or does not take what is there.
pub async fn reload(url: &str, authorities: Option<Vec<u8>>) -> Result<(), anyhow::Error> {
    let client = client(url, authorities.as_deref())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let files = ["tls-cert-file", "tls-key-file", "tls-ca-cert-file"];
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg(&files);
    let now: BTreeMap<String, String> = get.query_async(&mut connection).await?;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET");
    for (name, file) in now {
        set.arg(name).arg(file);
    }
    set.query_async::<()>(&mut connection).await.context("Redis does not take its new certificate")
}

/// Who may log in, as Redis reads it: gateways, and its administration.
///
/// # Errors
/// The password cannot be drawn.
pub fn users(home: &StackDir) -> Result<String, anyhow::Error> {
    let (password, administration) = (home.secret(PASSWORD)?, home.secret(ADMINISTRATION_PASSWORD)?);
    Ok(format!(
        "user default off\nuser {USER} on >{password} resetkeys ~{PREFIX}* resetchannels {MAY}\n\
         user {ADMINISTRATION} on >{administration} resetkeys resetchannels -@all +hello +auth +client|setname +select +ping +info +script|kill +config|get +config|set\n"
    ))
}
