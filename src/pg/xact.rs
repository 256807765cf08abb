//! Transactions of a background worker.
//!
//! pgrx's own `BackgroundWorker::transaction` commits when the closure returns
//! an error; this one aborts, and turns a caught ERROR into our error type.
use std::panic::AssertUnwindSafe;

use pgrx::{pg_sys, PgTryBuilder};

use crate::error::{Error, Result};
use crate::pg::{db, report};

/// Runs `work` in a transaction of its own and commits it; aborts it when
/// `work` returns an error or the server raises one. It is READ COMMITTED: who waited
/// for a lock sees what the one before has written.
///
/// # Errors
/// Whatever `work` returned or the server raised.
pub fn transaction<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    run(|| (), work)
}

/// Like [`transaction`], but the commit does not wait for the disk: a crash may
/// lose it, never tear it. For progress figures and steps that can be repeated.
///
/// # Errors
/// As [`transaction`].
pub fn transaction_async<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    transaction(|| {
        db::run("SET LOCAL synchronous_commit = off")?;
        work()
    })
}

/// Runs `work` in a transaction that sees what an exported snapshot saw.
///
/// The same as `SET TRANSACTION SNAPSHOT` (`ImportSnapshot` in
/// src/backend/utils/time/snapmgr.c), which can't be said through SPI.
///
/// # Errors
/// The snapshot is gone (its exporter ended), or as [`transaction`].
pub fn transaction_with_snapshot<T>(snapshot: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let name = std::ffi::CString::new(snapshot)
        .map_err(|_| Error::internal("snapshot name with a NUL byte"))?;
    let import = || unsafe {
        pg_sys::XactIsoLevel = pg_sys::XACT_REPEATABLE_READ as i32;
        pg_sys::XactReadOnly = true;
        pg_sys::ImportSnapshot(name.as_ptr());
    };
    run(import, work)
}

/// Runs `read` in the current transaction of a backend so that it sees what has
/// been committed by now (under READ COMMITTED).
///
/// # Errors
/// Whatever `read` returned; an ERROR of the server is raised.
pub fn with_new_snapshot<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let outcome = read();
    unsafe { pg_sys::PopActiveSnapshot() };
    outcome
}

/// Whether a transaction is the current one, or a subtransaction of it that has not been
/// rolled back.
pub fn is_current(xid: u32) -> bool {
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(pg_sys::TransactionId::from_inner(xid)) }
}

fn run<T>(begin: impl FnOnce(), work: impl FnOnce() -> Result<T>) -> Result<T> {
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| {
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            // Whatever the defaults of the database and the role are.
            pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            pg_sys::XactReadOnly = false;
        }
        begin();
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        let value = work()?;
        unsafe {
            if pg_sys::ActiveSnapshotSet() {
                pg_sys::PopActiveSnapshot();
            }
            pg_sys::CommitTransactionCommand();
        }
        Ok(value)
    }))
    .catch_others(|caught| Err(report::from_caught(&caught)))
    .catch_rust_panic(|caught| Err(report::from_caught(&caught)))
    .execute();
    unsafe {
        if outcome.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        // A worker has no client whose idleness would send the statistics.
        pg_sys::pgstat_report_stat(false);
    }
    outcome
}
