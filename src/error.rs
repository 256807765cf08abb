//! The one error type of the extension, and the one place that says what each
//! kind of error means: its SQLSTATE, and whether a worker may try again.
//!
//! Texts follow PostgreSQL's error message style guide: the message is one
//! lowercase fact, the detail full sentences of facts, the hint what to do.
use std::fmt;

/// unique_violation
pub const UNIQUE_VIOLATION: &str = "23505";

/// What an error is about; decides SQLSTATE and retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A bad argument (22023).
    BadArgument,
    /// Something named does not exist (42704).
    MissingObject,
    /// Something named exists already (42710).
    DuplicateObject,
    /// Not possible in the present state (55000).
    WrongState,
    /// Not supported (0A000).
    Unsupported,
    /// The role may not do this (42501).
    Privilege,
    /// Something could not be locked or drained in time (55P03).
    LockNotAvailable,
    /// Out of slots, workers or connections (53400).
    Resources,
    /// Another server could not be reached (08001).
    Unreachable,
    /// A connection to another server was lost (08006).
    ConnectionLost,
    /// Cancelled by the user (57014).
    Cancelled,
    /// Clusters that should hold the same rows don't (23000).
    Mismatch,
    /// Raised by a server; keeps that server's SQLSTATE.
    Server(String),
    /// It was tried as often as it may be; the SQLSTATE is that of the last try.
    OutOfTries(String),
    /// A bug (XX000).
    Internal,
}

/// What a worker does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Transient: try again with back-off.
    Retry,
    /// Fail the task; `reshard_resume()` goes on once a human has mended the cause.
    Fail,
}

/// An error with the texts that a DBA reads.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What it is about.
    pub kind: Kind,
    /// Primary message.
    pub message: String,
    /// Facts, in full sentences.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// Result with the extension's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether a server can't be reached, or was lost.
    pub fn is_absence(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::ConnectionLost)
    }

    /// Whether a server refuses the login (class 28): a password, a role, `pg_hba.conf`.
    pub fn is_refused_login(&self) -> bool {
        self.sqlstate().starts_with("28")
    }

    /// An error of the given kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None }
    }

    /// A bad argument (22023).
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(Kind::BadArgument, message)
    }

    /// Something named does not exist (42704).
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(Kind::MissingObject, message)
    }

    /// Not possible in the present state (55000).
    pub fn state(message: impl Into<String>) -> Self {
        Self::new(Kind::WrongState, message)
    }

    /// A bug (XX000).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Adds the detail.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The five characters of the SQLSTATE.
    pub fn sqlstate(&self) -> &str {
        match &self.kind {
            Kind::BadArgument => "22023",
            Kind::MissingObject => "42704",
            Kind::DuplicateObject => "42710",
            Kind::WrongState => "55000",
            Kind::Unsupported => "0A000",
            Kind::Privilege => "42501",
            Kind::LockNotAvailable => "55P03",
            Kind::Resources => "53400",
            Kind::Unreachable => "08001",
            Kind::ConnectionLost => "08006",
            Kind::Cancelled => "57014",
            Kind::Mismatch => "23000",
            Kind::Server(code) | Kind::OutOfTries(code) => code,
            Kind::Internal => "XX000",
        }
    }

    /// Whether a worker may try again by itself.
    ///
    /// Lost connections, shutdowns, deadlocks, lock timeouts and lack of
    /// resources pass; everything else needs a human. Classes of SQLSTATE:
    /// appendix A of the PostgreSQL manual.
    pub fn policy(&self) -> Policy {
        if matches!(self.kind, Kind::OutOfTries(_)) {
            return Policy::Fail;
        }
        let code = self.sqlstate();
        let transient = code.starts_with("08")
            || code.starts_with("53")
            || code.starts_with("57P")
            || matches!(code, "40001" | "40P01" | "55P03" | "58000" | "58030");
        if transient {
            Policy::Retry
        } else {
            Policy::Fail
        }
    }

    /// Message and detail in one line, for state tables and logs.
    pub fn one_line(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {}", self.message, detail),
            None => self.message.clone(),
        }
    }
}

/// Says what was being done when an error came up, without losing the error.
pub trait Context<T> {
    /// Puts `what` before the message: `could not create slot: ...`.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|mut error| {
            error.detail = Some(error.one_line());
            error.message = what.to_string();
            error
        })
    }
}

impl From<pgrx::spi::Error> for Error {
    fn from(error: pgrx::spi::Error) -> Self {
        Self::internal(format!("could not query the state tables: {error}"))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::internal(format!("could not read a state row: {error}"))
    }
}
