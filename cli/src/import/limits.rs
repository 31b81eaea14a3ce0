//! Limits of what is imported.

use std::io::{ErrorKind, Read};

/// The most labels a todo may carry, and the most characters of one.
pub const MAX_LABELS: usize = 20;
pub const MAX_LABEL: usize = 50;

/// Reads up to a limit and fails beyond it, with this message.
pub struct Bounded<R> {
    pub reader: R,
    pub left: u64,
    pub beyond: fn() -> String,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let left = self.left.checked_sub(read as u64);
        self.left = left.ok_or_else(|| std::io::Error::new(ErrorKind::FileTooLarge, (self.beyond)()))?;
        Ok(read)
    }
}
