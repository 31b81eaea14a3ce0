//! Who operates: the subject of a verified operator token, never the shell's user. And the confirmation before an act.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use authz::{JwksSource, OPERATORS_AUDIENCE, OperatorRole, Operators};
use clap::Args;

use crate::context::Context;

/// What every act of an operator needs.
#[derive(Debug, Clone, Args)]
pub struct ActArgs {
    /// Why: written into the journal.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

impl ActArgs {
    /// Checks that the token and the reason are given.
    pub fn check(&self, context: &Context) -> Result<String, anyhow::Error> {
        anyhow::ensure!(!self.reason.trim().is_empty(), "--reason must say why: it is what the journal is read for");
        context.operator_token()?.context(
            "who acts? Set FLOTILLA_OPERATOR_TOKEN; on the development stack `flotilla token --operator --user YOU` mints one",
        )
    }

    /// The same, and checks that the token is an operator's: for acts that no process does, and so none verifies.
    pub async fn verify(&self, context: &Context) -> Result<(), anyhow::Error> {
        let token = self.check(context)?;
        let (issuer, keys) = context.issuer()?;
        let keys: JwksSource = keys.parse().map_err(anyhow::Error::msg)?;
        let operator =
            Operators::new(keys, &issuer, OPERATORS_AUDIENCE)?.verify(Some(&format!("Bearer {token}"))).await?;
        anyhow::ensure!(
            operator.role == Some(OperatorRole::Operator),
            "{} is no operator, who alone acts",
            operator.name
        );
        Ok(())
    }

    /// Asks for confirmation, unless `--yes` is given.
    pub fn confirm(&self, question: &str) -> Result<(), anyhow::Error> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            bail!("{question} Nobody is here to answer: say --yes");
        }
        print!("{question} [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            bail!("nothing was changed");
        }
        Ok(())
    }
}
