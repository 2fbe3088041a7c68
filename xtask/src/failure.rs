//! Why a subcommand failed: a sentence, and the cause where there is one.

use std::error::Error;
use std::fmt::{self, Write as _};

/// What xtask's functions return.
pub(crate) type Result<T> = std::result::Result<T, Failed>;

/// A sentence that says what failed and what to do next, with its cause.
#[derive(Debug)]
pub(crate) struct Failed {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failed {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// The sentence and every cause below it, in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.what.clone();
        let mut source = self.source();
        while let Some(error) = source {
            // Writing into a string cannot fail.
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        text
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for Failed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// Says what was being done when an error came.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Error + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Failed { what: what(), source: Some(Box::new(source)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_every_cause() {
        let inner: Result<()> = Err(std::io::Error::other("no room")).context(|| "write".into());
        let outer = inner.context(|| "bench".into()).expect_err("it failed");
        assert_eq!(outer.chain(), "bench: write: no room");
    }
}
