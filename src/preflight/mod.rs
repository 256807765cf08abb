//! Checks before a run.
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::state::options::Options;

/// What is about to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `reshard_start()`.
    Start,
    /// `reshard_schema_sync()`.
    SchemaSync,
    /// `reshard_copy_data()`.
    CopyData,
    /// `reshard_replicate()`.
    Replicate,
}

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
    /// The facts.
    pub detail: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Runs all checks.
pub fn check(
    _verb: Verb,
    _source: &Cluster,
    _destination: &Cluster,
    _publication: &str,
    _options: &Options,
) -> Result<Vec<Finding>> {
    Ok(Vec::new())
}

/// The error that refuses a run.
pub fn first_error(_findings: &[Finding]) -> Option<Error> {
    None
}
