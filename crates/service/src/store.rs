//! The errors of a service's SQL.

use crate::{Code, Failure};

/// Why a statement failed, or did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row is not at the version that it was read at.
    #[error("the row has changed since it was read")]
    Conflict,
    /// A row holds what the domain does not allow: a bug, or a manual change.
    #[error("the row {id} of {table} holds what it cannot")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The row's id.
        id: String,
        /// What is wrong with it.
        #[source]
        source: anyhow::Error,
    },
    /// A constraint refused it; the command interprets the name.
    #[error("the constraint {name} does not allow it")]
    Constraint {
        /// The constraint's name in the schema.
        name: String,
        /// The database's message.
        #[source]
        source: sqlx::Error,
    },
    /// The database failed.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether this constraint refused it.
    #[must_use]
    pub fn is_constraint(&self, constraint: &str) -> bool {
        matches!(self, Self::Constraint { name, .. } if name == constraint)
    }

    /// A row with a value that it cannot hold.
    pub fn inconsistent(table: &'static str, id: impl ToString, source: impl Into<anyhow::Error>) -> Self {
        Self::Inconsistent { table, id: id.to_string(), source: source.into() }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error().and_then(|error| error.constraint()) {
            Some(name) => Self::Constraint { name: name.to_owned(), source: error },
            None => Self::Database(error),
        }
    }
}

/// What no command handles itself.
impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => {
                Self::new(Code::Aborted, "LOCKED", "something else has changed the same at this moment: try again")
                    .retry_after(std::time::Duration::from_secs(1))
            }
            StoreError::Database(error) => error.into(),
            error @ (StoreError::Inconsistent { .. } | StoreError::Constraint { .. }) => Self::internal(error),
        }
    }
}
