//! What every command knows: the folder of the stack, who operates, and how to print.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use devstack::StackDir;
use devstack::stack::{LOCK, STATUS_FILE};
use devstack::supervisor::{StackStatus, read_status};

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
    pub fn given(&self) -> Result<Option<String>, anyhow::Error> {
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

/// The context of every command.
pub struct Context {
    pub home: PathBuf,
    pub json: bool,
    pub operator: Token,
}

impl Context {
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

    /// The folder, opened.
    pub fn open_stack_dir(&self) -> Result<StackDir, anyhow::Error> {
        StackDir::open(&self.home)
    }
}
