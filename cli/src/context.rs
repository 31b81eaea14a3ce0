//! What every command knows: the fleet, who operates, and how to print.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use devstack::StackDir;
use devstack::issuer::{ISSUER, Issuer};
use devstack::stack::{LOCK, STATUS_FILE};
use devstack::supervisor::{StackStatus, read_status};

use crate::profile::{self, LOCAL, Profile};

/// Who operates.
#[derive(Debug, Clone, Args)]
pub struct Token {
    /// The operator's token; `flotilla token --operator --user YOU` mints one on the development stack.
    #[arg(long, env = "FLOTILLA_OPERATOR_TOKEN", hide_env_values = true, global = true)]
    operator_token: Option<String>,
    /// A file that holds it.
    #[arg(long, env = "FLOTILLA_OPERATOR_TOKEN_FILE", global = true)]
    operator_token_file: Option<PathBuf>,
}

impl Token {
    /// The token, where one was given.
    fn given(&self) -> Result<Option<String>, anyhow::Error> {
        let token = match (&self.operator_token, &self.operator_token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => {
                Some(std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?)
            }
            (None, None) => None,
        };
        Ok(token.map(|token| token.trim().to_owned()))
    }
}

/// The token that a profile's command prints.
fn printed(command: &str) -> Result<String, anyhow::Error> {
    // Everybody on the machine reads arguments; a variable, only who runs it.
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"eval "$FLOTILLA_COMMAND""#]).env("FLOTILLA_COMMAND", command);
    let output = shell.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let token = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success() && !token.is_empty(),
        "the profile's token command gave no token ({})",
        output.status
    );
    Ok(token)
}

/// The context of every command.
#[derive(Clone)]
pub struct Context {
    pub home: PathBuf,
    pub json: bool,
    /// Print nothing: what is done is a part of another command, which prints the whole.
    pub quiet: bool,
    operator: Token,
    /// The fleet that is elsewhere, by the name of its profile.
    elsewhere: Option<(String, Profile)>,
}

impl Context {
    /// The fleet of the stack's folder, or of a profile, whose keys are in place of the folder.
    pub fn new(home: PathBuf, json: bool, operator: Token, profile: Option<String>) -> Result<Self, anyhow::Error> {
        let profile = profile.filter(|name| name != LOCAL);
        let elsewhere = profile.map(|name| profile::read(&name).map(|profile| (name, profile))).transpose()?;
        let home = elsewhere.as_ref().map_or(home, |(_, profile)| profile.keys.clone());
        Ok(Self { home, json, quiet: false, operator, elsewhere })
    }

    /// The folder with the keys of NATS' accounts. Elsewhere they are not made: others than those of the fleet would open nothing.
    pub fn open_keys(&self) -> Result<StackDir, anyhow::Error> {
        let home = self.open_stack_dir()?;
        ensure!(
            !self.is_elsewhere() || devstack::nats::has_keys(&home),
            "the keys of NATS' accounts are not in {}: do this where they are",
            self.home.display()
        );
        Ok(home)
    }

    /// The same fleet, for the parts of a command that prints the whole itself.
    pub fn as_part(&self) -> Self {
        Self { quiet: self.json, ..self.clone() }
    }

    /// The same fleet, by this operator.
    pub fn acting_with(&self, token: String) -> Self {
        Self { operator: Token { operator_token: Some(token), operator_token_file: None }, ..self.clone() }
    }

    /// The arguments by which another command is about the same fleet.
    pub fn of_fleet(&self) -> [String; 2] {
        match &self.elsewhere {
            Some((name, _)) => ["--profile".to_owned(), name.clone()],
            None => ["--home".to_owned(), self.home.display().to_string()],
        }
    }

    /// Whether the fleet is not in a folder of this machine.
    pub const fn is_elsewhere(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// For what is about processes, data or files of this machine.
    pub fn only_here(&self, what: &str) -> Result<(), anyhow::Error> {
        match &self.elsewhere {
            Some((name, _)) => {
                bail!("{what} is of this machine, and the fleet of the profile {name} is not: leave out --profile")
            }
            None => Ok(()),
        }
    }

    /// The addresses of the operations ports, each with its service, of which several may be replicas; while a stack starts, of those
    /// that are there.
    pub fn ops(&self) -> Result<Vec<(String, String)>, anyhow::Error> {
        if let Some((_, profile)) = &self.elsewhere {
            return Ok(profile.addresses.ops.clone());
        }
        let units = self.stack_status()?.units.into_iter();
        Ok(units.filter_map(|unit| Some((unit.name, unit.ops?))).collect())
    }

    /// The URL of an operations port, of which a profile may say that it speaks TLS.
    pub fn ops_url(&self, address: &str) -> String {
        if address.starts_with("https://") { address.to_owned() } else { format!("{}://{address}", self.scheme()) }
    }

    /// What the ports of a stack speak that runs in the folder.
    pub fn scheme(&self) -> &'static str {
        if self.is_elsewhere() || self.authorities().is_none() { "http" } else { "https" }
    }

    /// The authorities whose certificates are trusted, as PEM; None: those of this machine.
    fn authorities(&self) -> Option<PathBuf> {
        StackDir::given(&self.home).authorities()
    }

    /// The same, read.
    pub fn trusted(&self) -> Result<Option<Vec<u8>>, anyhow::Error> {
        let read = |file: PathBuf| {
            let pem = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            ensure!(pem.starts_with(b"-----BEGIN CERTIFICATE"), "{} does not begin with a certificate", file.display());
            Ok(pem)
        };
        self.authorities().map(read).transpose()
    }

    /// A client of the fleet's HTTP.
    pub fn http(&self, timeout: Duration) -> Result<reqwest::Client, anyhow::Error> {
        let mut client = reqwest::Client::builder().timeout(timeout).no_proxy();
        if let Some(authorities) = self.trusted()? {
            client = client.tls_certs_only(reqwest::Certificate::from_pem_bundle(&authorities)?);
        }
        Ok(client.build()?)
    }

    /// The gateway's URL.
    pub fn gateway(&self) -> Result<String, anyhow::Error> {
        match &self.elsewhere {
            Some((_, profile)) => Ok(profile.addresses.gateway.clone()),
            None => Ok(format!("{}://{}", self.scheme(), self.stack_status()?.unit("gateway")?.address)),
        }
    }

    /// The URL of NATS.
    pub fn nats(&self) -> Result<String, anyhow::Error> {
        match &self.elsewhere {
            Some((_, profile)) => Ok(profile.addresses.nats.clone()),
            None => self.unit_url("nats"),
        }
    }

    /// The development issuer, by its key in the folder.
    pub fn development_issuer(&self) -> Result<Issuer, anyhow::Error> {
        if !self.home.join("secrets/issuer-key").exists() {
            if self.is_elsewhere() {
                bail!(
                    "{} has no issuer's key, which is for development: an operator's token comes from FLOTILLA_OPERATOR_TOKEN or the \
                     profile's --token-command, and a tenant's from the fleet's issuer",
                    self.home.display()
                );
            }
            bail!("there is no development issuer in {}, which signs tokens: `make up` makes one", self.home.display());
        }
        Issuer::open(&self.open_stack_dir()?)
    }

    /// The issuer, and where its key set is.
    pub fn issuer(&self) -> Result<(String, String), anyhow::Error> {
        match &self.elsewhere {
            Some((_, Profile { addresses, .. })) => Ok((addresses.issuer.clone(), addresses.jwks.clone())),
            None => Ok((ISSUER.to_owned(), format!("{}/jwks.json", self.unit_url("issuer")?))),
        }
    }

    fn unit_url(&self, name: &str) -> Result<String, anyhow::Error> {
        let url = self.stack_status()?.units.into_iter().find(|unit| unit.name == name).and_then(|unit| unit.url);
        url.with_context(|| format!("{name} is not up yet"))
    }

    /// The operator's token, where there is one.
    pub fn operator_token(&self) -> Result<Option<String>, anyhow::Error> {
        let command = self.elsewhere.as_ref().and_then(|(_, profile)| profile.token_command.as_deref());
        match (self.operator.given()?, command) {
            (None, Some(command)) => printed(command).map(Some),
            (given, _) => Ok(given),
        }
    }

    /// The status of the running stack.
    pub fn stack_status(&self) -> Result<StackStatus, anyhow::Error> {
        let stack_status = read_status(&self.home.join(STATUS_FILE)).ok().filter(|_| self.is_supervised());
        stack_status.with_context(|| format!("no fleet runs in {}: `make up` starts one", self.home.display()))
    }

    /// Whether a process supervises the folder: it holds the lock for as long as it lives. A process id in a file proves
    /// nothing, another process may have it by now.
    pub fn is_supervised(&self) -> bool {
        std::fs::File::open(self.home.join(LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_err())
    }

    /// The folder, opened. That of a profile is taken as it is.
    pub fn open_stack_dir(&self) -> Result<StackDir, anyhow::Error> {
        if self.is_elsewhere() { Ok(StackDir::given(&self.home)) } else { StackDir::open(&self.home) }
    }
}
