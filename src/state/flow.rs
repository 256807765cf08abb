//! Flows: one row per replication slot, in both directions.
use serde::Deserialize;

use crate::cluster::{Direction, ShardNo, Side};
use crate::error::Result;
use crate::pg::db::{self, Arg};

/// A row of `reshard.flow`. Shard numbers are those of the two clusters,
/// whichever way the changes go.
#[derive(Debug, Clone, Deserialize)]
pub struct Flow {
    /// Its migration.
    pub task_id: i64,
    /// Which way changes go.
    pub direction: Direction,
    /// The wave of tables that it carries.
    pub wave: i32,
    /// Shard of the source cluster.
    pub source_shard: u32,
    /// Shard of the destination cluster.
    pub destination_shard: u32,
    /// Slot on the publisher.
    pub slot_name: String,
    /// Publication on the publisher.
    pub publication_name: String,
    /// Subscription on the subscriber.
    pub subscription_name: String,
    /// The subscription is meant to be enabled.
    pub live: bool,
}

impl Flow {
    /// A flow with the names of its objects. `token` tells this database's
    /// migrations from those of others; all names stay far below 63 bytes.
    pub fn new(
        token: &str,
        task_id: i64,
        direction: Direction,
        wave: i32,
        source: ShardNo,
        destination: ShardNo,
    ) -> Self {
        let letter = match direction {
            Direction::Forward => "f",
            Direction::Reverse => "r",
        };
        let base = format!("reshard_{token}_{task_id}_{letter}{wave}");
        let subscriber = match direction {
            Direction::Forward => format!("d{destination}"),
            Direction::Reverse => format!("s{source}"),
        };
        let pair = format!("{base}_s{source}_d{destination}");
        Self {
            task_id,
            direction,
            wave,
            source_shard: source.0,
            destination_shard: destination.0,
            slot_name: pair.clone(),
            publication_name: format!("{base}_{subscriber}"),
            subscription_name: pair,
            live: false,
        }
    }

    /// The shard's number on one of the two sides.
    pub fn shard_on(&self, side: Side) -> ShardNo {
        ShardNo(match side {
            Side::Source => self.source_shard,
            Side::Destination => self.destination_shard,
        })
    }

    /// Key of the flow's row in `reshard.marker`, on both of its ends.
    pub fn marker_id(&self) -> String {
        self.slot_name.clone()
    }
}

/// The prefix of all objects of a migration, on every server.
pub fn object_prefix(token: &str, task: i64) -> String {
    format!("reshard_{token}_{task}_")
}

/// What was seen of a flow.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// A walsender serves the slot.
    pub active: bool,
    /// What the subscriber has confirmed.
    pub confirmed_lsn: Option<String>,
    /// Bytes of WAL between that and the publisher's end.
    pub lag_bytes: Option<i64>,
    /// Bytes of WAL that the slot keeps on the publisher.
    pub retained_bytes: Option<i64>,
    /// `pg_replication_slots.wal_status`.
    pub wal_status: Option<String>,
    /// `pg_stat_subscription_stats.apply_error_count`.
    pub apply_errors: Option<i64>,
    /// What its apply worker failed with last, where the subscriber knows.
    pub apply_error: Option<String>,
    /// Process number of its apply worker.
    pub worker: Option<i32>,
    /// The subscription is there, but disabled.
    pub disabled: bool,
    /// What is wrong with it.
    pub error: Option<String>,
    /// Why its publisher, or else its subscriber, could not be looked at.
    pub missing: Option<String>,
    /// The publisher could be looked at; otherwise nothing is known of the slot.
    pub slot_known: bool,
}

impl Observation {
    /// What its apply worker fails with, where it is known to have failed.
    pub fn apply_failure(&self) -> Option<String> {
        match (&self.apply_error, self.apply_errors.unwrap_or(0)) {
            (Some(text), 0) => Some(format!("the apply worker fails: {text}")),
            (Some(text), count) => {
                Some(format!("the apply worker fails ({count} errors so far): {text}"))
            }
            (None, 0) => None,
            (None, count) => Some(format!(
                "the apply worker fails ({count} errors so far); the subscriber's log says why"
            )),
        }
    }
}

/// Writes flows that are not known yet.
pub fn insert(flows: &[Flow]) -> Result<()> {
    for flow in flows {
        db::execute(
            "INSERT INTO reshard.flow (task_id, direction, wave, source_shard, destination_shard, \
                    slot_name, publication_name, subscription_name, live) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            &[
                Arg::I64(flow.task_id),
                Arg::Text(flow.direction.as_str()),
                Arg::I32(flow.wave),
                Arg::I32(flow.source_shard as i32),
                Arg::I32(flow.destination_shard as i32),
                Arg::Text(&flow.slot_name),
                Arg::Text(&flow.publication_name),
                Arg::Text(&flow.subscription_name),
                Arg::Bool(flow.live),
            ],
        )?;
    }
    Ok(())
}

/// The flows of a migration.
pub fn load(task: i64) -> Result<Vec<Flow>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(f) FROM reshard.flow AS f WHERE f.task_id = $1 \
          ORDER BY f.direction, f.wave, f.source_shard, f.destination_shard",
        &[Arg::I64(task)],
    )
}

/// The flows of a migration that go one way.
pub fn load_direction(task: i64, direction: Direction) -> Result<Vec<Flow>> {
    Ok(load(task)?.into_iter().filter(|f| f.direction == direction).collect())
}

/// Says which way changes are meant to go; `None` for neither.
pub fn set_live(task: i64, direction: Option<Direction>) -> Result<()> {
    db::execute(
        "UPDATE reshard.flow SET live = (direction = $2) IS TRUE, updated_at = clock_timestamp() \
          WHERE task_id = $1",
        &[Arg::I64(task), Arg::OptText(direction.map(Direction::as_str))],
    )
    .map(|_| ())
}

/// Says that the forward flows of one wave are meant to go now.
pub fn set_wave_live(task: i64, wave: i32) -> Result<()> {
    db::execute(
        "UPDATE reshard.flow SET live = true, updated_at = clock_timestamp() \
          WHERE task_id = $1 AND direction = 'forward' AND wave = $2",
        &[Arg::I64(task), Arg::I32(wave)],
    )
    .map(|_| ())
}

/// Keeps what was seen of a flow: of a publisher that could not be looked at, the last
/// look stays.
pub fn observe(flow: &Flow, seen: &Observation) -> Result<()> {
    let error = seen.error.as_deref().or(seen.missing.as_deref());
    if !seen.slot_known {
        return update(flow, "error = $6", [Arg::OptText(error)]);
    }
    update(
        flow,
        "active = $6, confirmed_lsn = $7::pg_catalog.pg_lsn, lag_bytes = $8, \
         retained_bytes = $9, wal_status = $10, apply_errors = coalesce($11, apply_errors), \
         error = $12, updated_at = clock_timestamp()",
        [
            Arg::Bool(seen.active),
            Arg::OptText(seen.confirmed_lsn.as_deref()),
            Arg::OptI64(seen.lag_bytes),
            Arg::OptI64(seen.retained_bytes),
            Arg::OptText(seen.wal_status.as_deref()),
            Arg::OptI64(seen.apply_errors),
            Arg::OptText(error),
        ],
    )
}

/// Sets columns of a flow's row; parameters of `set` count from 6.
fn update<'a, const N: usize>(flow: &'a Flow, set: &str, values: [Arg<'a>; N]) -> Result<()> {
    let mut arguments = vec![
        Arg::I64(flow.task_id),
        Arg::Text(flow.direction.as_str()),
        Arg::I32(flow.wave),
        Arg::I32(flow.source_shard as i32),
        Arg::I32(flow.destination_shard as i32),
    ];
    arguments.extend(values);
    db::execute(
        &format!(
            "UPDATE reshard.flow SET {set} WHERE task_id = $1 AND direction = $2 AND wave = $3 \
                AND source_shard = $4 AND destination_shard = $5"
        ),
        &arguments,
    )
    .map(|_| ())
}

/// Forgets the flows of one wave.
pub fn delete_wave(task: i64, wave: i32) -> Result<()> {
    db::execute(
        "DELETE FROM reshard.flow WHERE task_id = $1 AND direction = 'forward' AND wave = $2",
        &[Arg::I64(task), Arg::I32(wave)],
    )
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_an_identifier() {
        let flow =
            Flow::new("abcdef", i64::MAX, Direction::Reverse, 99, ShardNo(999), ShardNo(999));
        assert!(flow.slot_name.len() <= 63 && flow.publication_name.len() <= 63);
        assert!(flow.slot_name.starts_with(&object_prefix("abcdef", i64::MAX)));
    }
}
