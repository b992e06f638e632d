//! An error and its causes on one line.

/// Shows an error with its causes, once each.
pub(crate) struct Chain<'a, E>(pub(crate) &'a E);

impl<E: std::error::Error> std::fmt::Display for Chain<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
