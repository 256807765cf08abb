//! The history of tasks.
use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// What happened.
    Info,
    /// What a DBA should look at.
    Warning,
    /// What stopped a task.
    Error,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Writes an event.
pub fn write(
    task: Option<i64>,
    severity: Severity,
    kind: &str,
    message: &str,
    detail: serde_json::Value,
) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.event (task_id, severity, kind, message, detail) \
         VALUES ($1, $2, $3, $4, $5)",
        &[
            Arg::OptI64(task),
            Arg::Text(severity.as_str()),
            Arg::Text(kind),
            Arg::Text(message),
            Arg::Json(detail),
        ],
    )
    .map(|_| ())
}

/// Writes an event with the parts of an error.
pub fn write_error(task: i64, severity: Severity, kind: &str, error: &Error) -> Result<()> {
    write(
        Some(task),
        severity,
        kind,
        &error.message,
        serde_json::json!({
            "sqlstate": error.sqlstate(),
            "detail": error.detail,
            "hint": error.hint,
        }),
    )
}

/// Messages of a task's events of one kind, the latest first.
pub fn latest(task: i64, kind: &str, limit: i32) -> Result<Vec<String>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(e.message) FROM reshard.event AS e \
          WHERE e.task_id = $1 AND e.kind = $2 ORDER BY e.id DESC LIMIT $3",
        &[Arg::I64(task), Arg::Text(kind), Arg::I32(limit)],
    )
}

/// Writes an event of severity `info` without detail.
pub fn info(task: i64, kind: &str, message: &str) -> Result<()> {
    write(Some(task), Severity::Info, kind, message, serde_json::json!({}))
}
