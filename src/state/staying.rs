//! Sequences of shards that are in both clusters: what they are while the source is active,
//! and while the destination is.
use serde::Deserialize;

use crate::error::Result;
use crate::pg::db::{self, Arg};

/// A row of `reshard.staying_sequence`.
#[derive(Debug, Clone, Deserialize)]
pub struct StayingSequence {
    /// The shard's number in the source.
    pub source_shard: u32,
    /// Quoted, schema-qualified name.
    pub name: String,
    /// `pg_sequence.seqincrement` before a switch.
    pub increment: i64,
    /// `pg_sequence.seqmin` before a switch.
    pub minimum: i64,
    /// `pg_sequence.seqmax` before a switch.
    pub maximum: i64,
    /// `pg_sequence.seqstart` before a switch.
    pub start: i64,
    /// What follows `ALTER SEQUENCE` for its part of the values after a switch; none where
    /// each shard hands out the same ones.
    pub divided: Option<String>,
    /// What the latest switch has to do about it before the shard takes writes again, as
    /// statements of PL/pgSQL.
    pub opening: String,
}

/// Those of a task.
///
/// # Errors
/// SPI's.
pub fn load(task: i64) -> Result<Vec<StayingSequence>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(s) FROM reshard.staying_sequence AS s WHERE s.task_id = $1 \
          ORDER BY s.source_shard, s.name",
        &[Arg::I64(task)],
    )
}

/// Keeps what they are, in the place of what was kept before: with the commit point of a switch.
///
/// # Errors
/// SPI's.
pub fn keep(task: i64, sequences: &[StayingSequence]) -> Result<()> {
    db::execute("DELETE FROM reshard.staying_sequence WHERE task_id = $1", &[Arg::I64(task)])?;
    for sequence in sequences {
        db::execute(
            "INSERT INTO reshard.staying_sequence (task_id, source_shard, name, increment, minimum, \
                    maximum, start, divided, opening) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &[
                Arg::I64(task),
                Arg::I32(sequence.source_shard as i32),
                Arg::Text(&sequence.name),
                Arg::I64(sequence.increment),
                Arg::I64(sequence.minimum),
                Arg::I64(sequence.maximum),
                Arg::I64(sequence.start),
                Arg::OptText(sequence.divided.as_deref()),
                Arg::Text(&sequence.opening),
            ],
        )?;
    }
    Ok(())
}
