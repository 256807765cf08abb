//! Which way changes go while a migration is compared, and waiting for them.
use std::time::Duration;

use crate::cluster::Direction;
use crate::error::{Error, Kind, Result};
use crate::pg::xact::transaction;
use crate::remote::Links;
use crate::replication::marker;
use crate::state::flow::Flow;
use crate::state::task::{self, Phase, Status};
use crate::state::{event, traffic};

/// How long changes may take to arrive before it is looked whether all is well.
const LOOK: Duration = Duration::from_secs(10);
/// Looks after which they are given up.
const LOOKS: u32 = 180;
/// How often the end of a switch is looked for.
const SWITCHING: Duration = Duration::from_millis(200);

/// A migration from one switch of traffic to the next.
pub(super) struct Timeline<'a> {
    links: &'a Links,
    task: i64,
    migration: i64,
    /// Which way changes go.
    pub(super) direction: Direction,
    epoch: i64,
}

impl<'a> Timeline<'a> {
    /// The present one; waits for the end of a switch.
    ///
    /// # Errors
    /// 55000 where the migration does not run, or nothing flows in it.
    pub(super) async fn now(links: &'a Links, task: i64, migration: i64) -> Result<Self> {
        loop {
            refuse_ended(task)?;
            if let Some((direction, epoch)) = look(migration)? {
                return Ok(Self { links, task, migration, direction, epoch });
            }
            tokio::time::sleep(SWITCHING).await;
        }
    }

    /// Refuses what was read when traffic has been switched since. Nothing else than the
    /// flows has written to a closed cluster before that.
    ///
    /// # Errors
    /// 40001, and then it has to be read again; 55000 as [`Timeline::now`].
    pub(super) fn refuse_switched(&self) -> Result<()> {
        match look(self.migration)? {
            Some((_, epoch)) if epoch != self.epoch => Err(switched()),
            _ => Ok(()),
        }
    }

    /// Waits until all that was committed by now has been applied by flows.
    ///
    /// # Errors
    /// 55P03 where changes don't arrive in half an hour; 40001, 55000 as
    /// [`Timeline::refuse_switched`]; the servers'.
    pub(super) async fn catch_up(&self, flows: &[Flow]) -> Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let sent = marker::send(self.links, flows).await?;
        let mut looks = 0;
        loop {
            looks += 1;
            match sent.arrive(self.links, flows, LOOK * looks).await {
                Ok(_) => break,
                Err(error) if error.kind == Kind::LockNotAvailable && looks < LOOKS => {
                    self.refuse_switched()?;
                    if looks == 1 {
                        transaction(|| {
                            event::info(
                                self.task,
                                "waiting",
                                "changes are late: rows are compared when they have arrived",
                            )
                        })?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A task that was cancelled has nothing more to compare.
fn refuse_ended(id: i64) -> Result<()> {
    match transaction(|| task::load(id))?.status.is_final() {
        true => Err(Error::new(Kind::Cancelled, format!("task {id} has ended"))),
        false => Ok(()),
    }
}

fn switched() -> Error {
    Error::new(Kind::Server("40001".to_owned()), "traffic was switched while rows were compared")
}

/// The direction of a migration's flows and the epoch of its traffic; `None` while it is
/// being switched.
fn look(migration: i64) -> Result<Option<(Direction, i64)>> {
    let (task, flag) = transaction(|| {
        let task = task::load(migration)?;
        let flag = traffic::load(&task.source)?;
        Ok((task, flag))
    })?;
    if task.status != Status::Running {
        return Err(Error::state(format!("migration {migration} does not run")).detail(format!(
            "Its status is {}. Rows are compared while changes flow.",
            task.status.as_str()
        )));
    }
    if task.phase == Phase::Cutover {
        return Ok(None);
    }
    if !task.phase.is_flowing() {
        return Err(Error::state(format!(
            "migration {migration} can't be compared in phase {}",
            task.phase.as_str()
        )));
    }
    Ok(Some(match flag.active_cluster == task.destination {
        true => (Direction::Reverse, flag.epoch),
        false => (Direction::Forward, flag.epoch),
    }))
}
