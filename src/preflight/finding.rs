//! What a check says, and how findings become the error that refuses a run.
use crate::error::{Error, Kind};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The run is refused.
    Error,
    /// The run may be spoiled.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Name of the check.
    pub check_name: &'static str,
    /// What it is about.
    pub object: Option<String>,
    /// How much it matters.
    pub severity: Severity,
    /// SQLSTATE of the error that it makes.
    pub kind: Kind,
    /// The primary message of the error that it makes.
    pub message: String,
    /// The facts, in full sentences.
    pub detail: String,
    /// What to do; where possible, text that can be pasted.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding that refuses the run.
    pub fn error(check_name: &'static str, kind: Kind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            check_name,
            object: None,
            severity: Severity::Error,
            kind,
            detail: sentence(&message),
            message,
            hint: None,
        }
    }

    /// A finding that may spoil the run.
    pub fn warning(check_name: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(check_name, Kind::WrongState, message) }
    }

    /// A finding that is good to know.
    pub fn info(check_name: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Info, ..Self::error(check_name, Kind::WrongState, message) }
    }

    /// An error as a finding.
    pub fn from_error(check_name: &'static str, error: &Error) -> Self {
        let mut out = Self::error(check_name, error.kind.clone(), &error.message);
        if let Some(detail) = &error.detail {
            out = out.detail(detail);
        }
        out.hint.clone_from(&error.hint);
        out
    }

    /// What it is about.
    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }

    /// More facts, after the message.
    pub fn detail(mut self, detail: impl AsRef<str>) -> Self {
        self.detail = format!("{} {}", sentence(&self.message), detail.as_ref());
        self
    }

    /// What to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A message as a sentence; a setting's name stays as it is.
fn sentence(message: &str) -> String {
    let name = message.split(' ').next().is_some_and(|word| word.contains('_'));
    let mut chars = message.chars();
    match chars.next() {
        Some(first) if !name => format!("{}{}.", first.to_uppercase(), chars.as_str()),
        Some(_) => format!("{message}."),
        None => String::new(),
    }
}

/// The error that refuses a run; none where no finding does. The first finding
/// gives message, SQLSTATE and hint; the others are listed in the detail, with
/// their hints.
pub fn first_error(findings: &[Finding]) -> Option<Error> {
    let errors: Vec<&Finding> = findings.iter().filter(|f| f.severity == Severity::Error).collect();
    let first = errors.first()?;
    // A finding's detail begins with its message; the report has that already.
    let message = sentence(&first.message);
    let mut detail = first.detail.strip_prefix(&message).unwrap_or(&first.detail).trim().to_owned();
    if errors.len() > 1 {
        let more = match errors.len() - 1 {
            1 => "One more error was found:".to_owned(),
            more => format!("{more} more errors were found:"),
        };
        detail.push_str(&format!("\n{more}"));
        for finding in &errors[1..] {
            detail.push_str(&format!("\n{}: {}", finding.check_name, finding.detail));
            if let Some(hint) = &finding.hint {
                detail.push_str(&format!(" {hint}"));
            }
        }
    }
    let mut error = Error::new(first.kind.clone(), first.message.clone());
    error.detail = Some(detail.trim().to_owned()).filter(|d| !d.is_empty());
    error.hint.clone_from(&first.hint);
    Some(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn warnings_refuse_nothing() {
        assert!(first_error(&[Finding::warning("a", "x"), Finding::info("b", "y")]).is_none());
    }

    #[test]
    fn several_errors_are_all_listed() {
        let first =
            Finding::error("wal_level", Kind::WrongState, "wal_level is low").hint("Raise.");
        let second = Finding::error("slots", Kind::Resources, "slots are few");
        let error = first_error(&[first, second]).unwrap();
        assert_eq!(error.sqlstate(), "55000");
        assert_eq!(error.message, "wal_level is low");
        assert_eq!(error.hint.as_deref(), Some("Raise."));
        let detail = error.detail.unwrap();
        assert!(detail.starts_with("One more error was found:"));
        assert!(detail.contains("slots: Slots are few."));
    }
}
