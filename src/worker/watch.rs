//! Looks at a migration's flows again and again: writes down how they are, shows on the task
//! what is wrong with them, warns of WAL that piles up. What it remembers outlasts the tries
//! of a phase.
use std::collections::{HashMap, HashSet};
use std::time::Instant;

use crate::cluster::Direction;
use crate::error::{Error, Result};
use crate::gucs;
use crate::pg::xact::{transaction, transaction_async};
use crate::replication::health::{Ailment, Health};
use crate::replication::monitor;
use crate::state::event::{self, Severity};
use crate::state::flow::{self, Flow, Observation};
use crate::state::task::{self, Phase};
use crate::worker::migration::Migration;

/// A flow and what was seen of it.
pub type Seen = (Flow, Observation);

/// What is remembered of the flows of one migration, since its driver began.
#[derive(Default)]
pub struct Watch {
    health: HashMap<String, Health>,
    /// Slots that are known to keep much WAL.
    heavy: HashSet<String>,
    /// What events say of flows that are not well again; none for a slot's trouble.
    troubles: HashSet<Option<Ailment>>,
    /// An event says that slots that wait are about to lose WAL.
    unreserved: bool,
    /// The error that stands on the task: of a flow, or of a try that failed.
    shown: Option<String>,
    looked: Option<Instant>,
}

impl Watch {
    /// The error of a try is shown on the task: until flows are seen to be well.
    pub fn is_shown(&mut self, error: &Error) {
        self.shown = Some(error.one_line());
    }

    /// Whether flows were looked at since then.
    pub fn has_looked_since(&self, then: Instant) -> bool {
        self.looked.is_some_and(|looked| looked >= then)
    }

    /// Looks at all flows of which a server can be reached.
    ///
    /// # Errors
    /// 55000 where a flow can't go on; that of a server which can't be looked at, once what
    /// the others say is written down.
    pub async fn look(&mut self, migration: &Migration) -> Result<Vec<Seen>> {
        let id = migration.id();
        let flows = transaction(|| flow::load(id))?;
        let (mut seen, missing) = monitor::observe(&migration.links, &flows).await;
        let now = Instant::now();
        self.looked = Some(now);
        for (flow, seen) in flows.iter().zip(&mut seen) {
            self.judge(flow, seen, now);
        }
        let seen: Vec<Seen> = flows.into_iter().zip(seen).collect();
        transaction_async(|| seen.iter().try_for_each(|(flow, seen)| flow::observe(flow, seen)))?;
        refuse_dead(migration.task.phase, &seen)?;
        self.complain(migration, &seen)?;
        self.warn_of_wal(id, &seen)?;
        match missing {
            Some(error) => Err(error),
            None => Ok(seen),
        }
    }

    fn judge(&mut self, flow: &Flow, seen: &mut Observation, now: Instant) {
        if !flow.live {
            self.health.remove(&flow.slot_name);
            return;
        }
        let health = self.health.entry(flow.slot_name.clone()).or_insert_with(|| Health::new(now));
        if seen.missing.is_some() {
            return health.unseen(now);
        }
        let ailment = health.look(seen, now);
        if seen.error.is_none() {
            seen.error = ailment.map(|ailment| describe(ailment, seen));
        }
    }

    /// Shows on the task what is wrong with its flows.
    fn complain(&mut self, migration: &Migration, seen: &[Seen]) -> Result<()> {
        let id = migration.id();
        let copying = is_copying(migration.task.phase);
        let worst = seen
            .iter()
            .filter(|(flow, _)| flow.live)
            .find_map(|(flow, seen)| seen.error.as_ref().map(|error| (flow, seen, error)));
        if let Some((flow, seen, error)) = worst {
            let ailment = self.health.get(&flow.slot_name).and_then(Health::ailment);
            self.show_trouble(id, ailment, &trouble(flow, seen, error)?)?;
        } else if seen.iter().all(|(_, seen)| seen.missing.is_none()) {
            // What stopped a copy is not known to be over.
            let was_shown = self.shown.take_if(|_| !copying || !self.troubles.is_empty());
            if let Some(text) = was_shown {
                transaction(|| task::forget_error(id, &text))?;
            }
            self.troubles.clear();
        }
        match copying {
            true => self.complain_of_waiting(id, seen),
            false => Ok(()),
        }
    }

    fn show_trouble(&mut self, id: i64, ailment: Option<Ailment>, error: &Error) -> Result<()> {
        let is_news = !self.troubles.contains(&ailment);
        transaction(|| {
            task::note_error(id, Some(error))?;
            match is_news {
                true => event::write(
                    Some(id),
                    Severity::Warning,
                    "flow",
                    &error.one_line(),
                    serde_json::json!({ "hint": error.hint }),
                ),
                false => Ok(()),
            }
        })?;
        self.troubles.insert(ailment);
        self.is_shown(error);
        Ok(())
    }

    /// Shows on the task that slots which wait are about to lose WAL.
    fn complain_of_waiting(&mut self, id: i64, seen: &[Seen]) -> Result<()> {
        let names: Vec<String> = seen
            .iter()
            .filter(|(_, s)| s.wal_status.as_deref() == Some("unreserved"))
            .map(|(f, _)| format!("\"{}\"", f.slot_name))
            .collect();
        let before = std::mem::replace(&mut self.unreserved, !names.is_empty());
        if before || names.is_empty() {
            return Ok(());
        }
        let error = Error::state("replication slots are about to lose WAL")
            .detail(format!("They keep more than max_slot_wal_keep_size: {}.", names.join(", ")))
            .hint(RAISE);
        transaction(|| {
            task::note_error(id, Some(&error))?;
            event::write(
                Some(id),
                Severity::Warning,
                "slot",
                &error.one_line(),
                serde_json::json!({ "hint": error.hint }),
            )
        })
    }

    /// Writes a warning, once until it shrinks again, for each slot that keeps more WAL
    /// than `reshard.slot_wal_warning`.
    fn warn_of_wal(&mut self, id: i64, seen: &[Seen]) -> Result<()> {
        let limit = i64::from(gucs::SLOT_WAL_WARNING.get()) << 20;
        for (flow, seen) in seen {
            let Some(retained) = seen.retained_bytes else { continue };
            if limit == 0 || retained < limit / 2 {
                self.heavy.remove(&flow.slot_name);
            } else if retained > limit && self.heavy.insert(flow.slot_name.clone()) {
                transaction(|| {
                    event::write(
                        Some(id),
                        Severity::Warning,
                        "slot_wal",
                        &format!(
                            "replication slot \"{}\" keeps {} MB of WAL",
                            flow.slot_name,
                            retained >> 20
                        ),
                        serde_json::json!({
                            "direction": flow.direction.as_str(),
                            "lag_bytes": seen.lag_bytes,
                            "retained_bytes": retained,
                            "active": seen.active,
                            "hint": "See error and active in reshard.replication_slots. If the disk is in danger: reshard_cancel() before the switch, reshard_complete() after it, drop the slots.",
                        }),
                    )
                })?;
            }
        }
        Ok(())
    }
}

/// What to do about a slot that is about to lose WAL.
const RAISE: &str = "Raise max_slot_wal_keep_size on the publisher now; a reload is enough.";

/// Whether flows wait for tables and their keys.
fn is_copying(phase: Phase) -> bool {
    matches!(phase, Phase::Copy | Phase::SchemaPost)
}

fn describe(ailment: Ailment, seen: &Observation) -> String {
    let failure = match ailment {
        Ailment::Absent if seen.disabled => Some("the subscription is disabled".to_owned()),
        // Where no text is known, errors that were counted may be old ones.
        Ailment::Absent if seen.apply_error.is_none() => None,
        _ => seen.apply_failure(),
    };
    failure.unwrap_or_else(|| "no apply worker runs".to_owned())
}

/// A flow that can't go on by itself is an error, never a gap. One that waits for a copy has
/// no slot at first, and one that waits for a switch is made anew by the next cutover.
fn refuse_dead(phase: Phase, seen: &[Seen]) -> Result<()> {
    let is_dead = |(flow, seen): &&Seen| {
        let lost = seen.wal_status.as_deref() == Some("lost");
        let gone = seen.slot_known && seen.confirmed_lsn.is_none();
        match is_copying(phase) {
            true => lost,
            false => flow.live && (lost || gone),
        }
    };
    match seen.iter().find(is_dead) {
        Some((flow, seen)) => Err(unusable(flow, seen)),
        None => Ok(()),
    }
}

fn unusable(flow: &Flow, seen: &Observation) -> Error {
    Error::state(format!("replication slot \"{}\" can't be used any more", flow.slot_name))
        .detail(seen.error.clone().unwrap_or_default())
        .hint(match flow.direction {
            Direction::Forward => {
                "Cancel the migration and start it again; raise max_slot_wal_keep_size first."
                    .to_owned()
            }
            // What was written on the shards since can't come back any more.
            Direction::Reverse => format!(
                "There is no way back any more, traffic stays where it is: SELECT reshard_complete({});",
                flow.task_id
            ),
        })
}

fn trouble(flow: &Flow, seen: &Observation, error: &str) -> Result<Error> {
    let ddl = transaction(|| event::latest(flow.task_id, "ddl", 3))?;
    let mut detail = format!("\"{}\": {error}", flow.slot_name);
    if !ddl.is_empty() {
        // What has most likely broken it.
        detail.push_str(&format!(". DDL on the source, latest first: {}.", ddl.join("; ")));
    }
    Ok(Error::state("a replication flow is in trouble")
        .detail(detail)
        .hint(remedy(flow, seen, error)))
}

/// What to do about a flow's error; a conflict names the transaction that it is in.
fn remedy(flow: &Flow, seen: &Observation, error: &str) -> String {
    if seen.wal_status.as_deref() == Some("unreserved") {
        return RAISE.to_owned();
    }
    let lsn = error
        .split_once("finished at ")
        .map(|(_, rest)| rest.split([' ', ',', '.']).next().unwrap_or_default());
    match lsn {
        Some(lsn) => format!(
            "On the subscriber, mend the row that is in the way (SET application_name = 'reshard repair' \
             lets a session write to the closed cluster), or leave the transaction out: ALTER SUBSCRIPTION \
             {} SKIP (lsn = '{lsn}');",
            flow.subscription_name
        ),
        None => "See the log of the subscriber. A worker that does not start or connect: \
                 max_logical_replication_workers and max_worker_processes there; max_wal_senders, \
                 the password and pg_hba.conf of the publisher."
            .to_owned(),
    }
}
