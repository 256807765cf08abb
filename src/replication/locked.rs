//! DDL on tables that are in use: waits for locks in short turns, so that it
//! never makes the application queue behind it for long.
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gucs;
use crate::remote::{blockers, Connection};

/// How long DDL on one table is tried altogether.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs `sql` in one transaction under `reshard.lock_timeout`, again and again
/// until it gets its locks.
///
/// # Errors
/// 55P03 when the locks could not be had in ten minutes, with the sessions in
/// the way; any other error at once.
pub async fn batch(session: &Connection, table: &str, sql: &str) -> Result<()> {
    batch_within(session, table, sql, PATIENCE).await
}

/// The same, but tried no longer than `patience` altogether.
///
/// # Errors
/// As [`batch`].
pub async fn batch_within(
    session: &Connection,
    table: &str,
    sql: &str,
    patience: Duration,
) -> Result<()> {
    let began = Instant::now();
    let turn = gucs::LOCK_TIMEOUT.get();
    loop {
        // The deadlock check is what makes autovacuum give way (ProcSleep in
        // src/backend/storage/lmgr/proc.c): it has to come before our time is up.
        let text = format!(
            "BEGIN; SET LOCAL lock_timeout = {turn}; SET LOCAL deadlock_timeout = {}; {sql}; COMMIT",
            (turn / 4).clamp(1, 100)
        );
        let error = match session.batch(&text).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !session.is_closed() {
            session.batch("ROLLBACK").await?;
        }
        let passing = matches!(error.sqlstate(), "55P03" | "40P01");
        if !passing {
            return Err(error);
        }
        if began.elapsed() > patience {
            let error = blockers::error_of_table(session, table).await?;
            return Err(error.hint("End these sessions."));
        }
        // Others go first: as long a pause as the turn was.
        tokio::time::sleep(Duration::from_millis(turn.unsigned_abs().into())).await;
    }
}
