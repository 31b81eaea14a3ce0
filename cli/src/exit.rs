//! Results that are no failure of the command itself, each with its own exit code for scripts.

/// The command did its work, and this is the result.
#[derive(Debug)]
pub struct Exit {
    /// The process's exit code.
    pub code: u8,
    message: String,
}

impl Exit {
    /// A job ended with something unhandled: 3.
    pub const fn unfinished(message: String) -> Self {
        Self { code: 3, message }
    }

    /// Something is not as it must be: 4.
    pub const fn found(message: String) -> Self {
        Self { code: 4, message }
    }

    /// Not everything could be checked, and nothing wrong was found in the rest: 5.
    pub const fn unchecked(message: String) -> Self {
        Self { code: 5, message }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}
