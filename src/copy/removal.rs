//! Takes rows that have moved off the shard that they came from, once there is no way back.
//!
//! Block by block, each batch a transaction of its own: a range of blocks is read without an
//! index (a TID range scan), and no row that is to go can come to a block that was read. As a
//! replica: neither foreign keys nor triggers of the user have a say in it, the row is where
//! it belongs.
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gucs;
use crate::remote::quote::literal;
use crate::remote::Connection;

/// Blocks that one transaction reads.
const BATCH: i64 = 128;
/// kB of a block.
const BLOCK: i64 = 8;

/// The number of blocks of a table.
///
/// # Errors
/// The server's.
pub async fn blocks(session: &Connection, table: &str) -> Result<i64> {
    session
        .value(
            "SELECT pg_relation_size(to_regclass($1)) / current_setting('block_size')::bigint",
            &[&table],
        )
        .await
}

/// Deletes the rows `t` of a table that meet a condition from a range of blocks that begins
/// at `from`. Returns where it ended, and how many rows there were.
///
/// # Errors
/// The server's; nothing is deleted then.
pub async fn remove_batch(
    session: &Connection,
    table: &str,
    condition: &str,
    (from, blocks): (i64, i64),
) -> Result<(i64, u64)> {
    let to = (from + BATCH).min(blocks);
    let begin =
        "BEGIN; SET LOCAL session_replication_role = replica; SET LOCAL enable_seqscan = off";
    session.batch(begin).await?;
    let deleted = session
        .execute(
            &format!(
                "DELETE FROM ONLY {table} AS t WHERE t.ctid >= {}::tid AND t.ctid < {}::tid \
                    AND ({condition})",
                literal(&format!("({from},0)")),
                literal(&format!("({to},0)")),
            ),
            &[],
        )
        .await;
    match deleted {
        Ok(rows) => session.batch("COMMIT").await.map(|()| (to, rows)),
        Err(error) if session.is_closed() => Err(error),
        Err(error) => session.batch("ROLLBACK").await.and(Err(error)),
    }
}

/// Waits after a batch that was begun then: as long as it took, so that others have half of
/// the time, and as long as `reshard.removal_rate_limit` asks for.
pub async fn pause(began: Instant, blocks: i64) {
    let took = began.elapsed();
    let rate = gucs::REMOVAL_RATE_LIMIT.get();
    let limited = match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64((blocks * BLOCK) as f64 / f64::from(rate)),
    };
    tokio::time::sleep(took.max(limited.saturating_sub(took))).await;
}
