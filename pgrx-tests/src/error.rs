//! What can go wrong in the harness itself, and the errors of servers as values.

use std::fmt;
use std::time::Duration;

/// Result of everything in the harness.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the harness.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("could not {action}: {source}")]
    Io {
        /// What was tried, as "read file ...".
        action: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("{program} failed ({status}): {stderr}")]
    Program {
        /// Name of the program.
        program: String,
        /// Its exit status.
        status: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// A server did not do what it was asked for.
    #[error("server \"{server}\" {problem}\n--- end of its log ---\n{log_tail}")]
    Server {
        /// Name of the server in its rig.
        server: String,
        /// What went wrong, as a phrase.
        problem: String,
        /// Last lines of its log.
        log_tail: String,
    },
    /// A statement failed, or a connection broke.
    #[error(transparent)]
    Sql(#[from] Box<SqlError>),
    /// A condition did not come true in time.
    #[error("gave up after {waited:.1?} waiting for {what}; last seen: {last_seen}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// The state when the wait ended.
        last_seen: String,
    },
    /// The harness met a state that it has no use for.
    #[error("{0}")]
    Unexpected(String),
}

impl Error {
    /// For `map_err`: names what was tried when the system refused.
    pub fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let action = action.into();
        move |source| Error::Io { action, source }
    }

    /// The SQLSTATE, where a server gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Sql(error) => error.code.as_deref(),
            _ => None,
        }
    }

    /// The server's error, where there is one.
    pub fn sql(&self) -> Option<&SqlError> {
        match self {
            Error::Sql(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the connection is gone, so that the fate of a statement is open.
    pub fn is_disconnect(&self) -> bool {
        match self {
            Error::Sql(error) => match error.code.as_deref() {
                None => true,
                // Shutdowns and crashes of the server, and connections refused meanwhile.
                Some(code) => matches!(code, "57P01" | "57P02" | "57P03" | "57P05"),
            },
            _ => false,
        }
    }
}

/// An error as a server reported it; without a `code` the connection broke.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SqlError {
    /// SQLSTATE.
    pub code: Option<String>,
    /// Primary message.
    pub message: String,
    /// Detail, where given.
    pub detail: Option<String>,
    /// Hint, where given.
    pub hint: Option<String>,
    /// Context, where given.
    pub context: Option<String>,
}

impl SqlError {
    /// Message, detail and hint as one text, for checks of what is named anywhere.
    pub fn full_text(&self) -> String {
        let mut text = self.message.clone();
        for part in [&self.detail, &self.hint].into_iter().flatten() {
            text.push('\n');
            text.push_str(part);
        }
        text
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.as_deref().unwrap_or("no SQLSTATE");
        write!(f, "[{code}] {}", self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " DETAIL: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " HINT: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SqlError {}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => SqlError {
                code: Some(db.code().code().to_owned()),
                message: db.message().to_owned(),
                detail: db.detail().map(str::to_owned),
                hint: db.hint().map(str::to_owned),
                context: db.where_().map(str::to_owned),
            },
            None => {
                let mut message = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(inner) = cause {
                    message.push_str(": ");
                    message.push_str(&inner.to_string());
                    cause = inner.source();
                }
                SqlError { message, ..SqlError::default() }
            }
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Error::Sql(Box::new(error.into()))
    }
}
