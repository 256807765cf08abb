//! Turns an [`Error`] into PostgreSQL's own error report, and back.
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::error::{Error, Kind};

/// Raises the error in the calling backend. Used at the SQL edge only.
pub fn raise(error: Error) -> ! {
    report(error, PgLogLevel::ERROR);
    unreachable!("an ERROR report does not return")
}

/// Tells the client of the calling backend, and goes on.
pub fn warn(error: Error) {
    report(error, PgLogLevel::WARNING);
}

fn report(error: Error, level: PgLogLevel) {
    let mut report = ErrorReport::new(sql_error_code(error.sqlstate()), error.message, "reshard");
    if let Some(detail) = error.detail {
        report = report.set_detail(detail);
    }
    if let Some(hint) = error.hint {
        report = report.set_hint(hint);
    }
    report.report(level);
}

/// The value, or the error raised in the calling backend.
pub fn or_raise<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => raise(error),
    }
}

/// An error that the server raised inside of [`pgrx::PgTryBuilder`].
pub fn from_caught(caught: &CaughtError) -> Error {
    match caught {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => Error {
            kind: Kind::Server(sqlstate_text(report.sql_error_code())),
            message: report.message().to_owned(),
            detail: report.detail().map(str::to_owned),
            hint: report.hint().map(str::to_owned),
        },
    }
}

/// MAKE_SQLSTATE of src/include/utils/elog.h: five characters, six bits each.
fn sql_error_code(text: &str) -> PgSqlErrorCode {
    let packed = text
        .bytes()
        .take(5)
        .enumerate()
        .fold(0_i32, |acc, (i, b)| acc | (i32::from(b.wrapping_sub(b'0') & 0x3F) << (6 * i)));
    PgSqlErrorCode::from(packed as isize)
}

fn sqlstate_text(code: PgSqlErrorCode) -> String {
    let packed = code as i32;
    (0..5).map(|i| char::from((((packed >> (6 * i)) & 0x3F) as u8) + b'0')).collect()
}
