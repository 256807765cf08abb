//! What a copy worker does: claims parts and copies them until none is left.
use crate::cluster::ShardNo;
use crate::copy::copier::{Copier, Outcome, Sent};
use crate::copy::part::{self, Claim, Part};
use crate::error::{Policy, Result};
use crate::pg::db;
use crate::pg::settings::NO_TIMEOUTS;
use crate::pg::{dynamic_worker, interrupt, memory, progress, xact};
use crate::{gucs, state};

/// Copies parts of the wave until none is left or the snapshot is gone.
///
/// # Errors
/// Those of the state tables. Errors of a part are kept with the part.
pub fn work(task_id: i64, wave: i32) -> Result<()> {
    let pid = dynamic_worker::process_id();
    memory::keep_freed_blocks();
    // A large part takes as long as it takes.
    xact::transaction(|| db::run(NO_TIMEOUTS))?;
    let Some((mut copier, node)) = xact::transaction(|| prepare(task_id, wave))? else {
        return Ok(());
    };
    part::free_own(task_id, node, pid)?;
    let result = copy_all(&mut copier, Duty { task_id, wave, node, pid });
    copier.close();
    result
}

/// What a worker is for.
#[derive(Clone, Copy)]
struct Duty {
    task_id: i64,
    wave: i32,
    node: ShardNo,
    pid: i32,
}

fn prepare(task_id: i64, wave: i32) -> Result<Option<(Copier, ShardNo)>> {
    let task = state::task::load(task_id)?;
    let node = ShardNo(task.options.node);
    let Some(snapshot) = state::wave::snapshot(task_id, wave, node)? else { return Ok(None) };
    let (_, destination) = state::cluster::of_task(&task)?;
    let copier = Copier::new(destination, node, state::token()?, task_id, wave, Some(snapshot))?;
    Ok(Some((copier, node)))
}

fn copy_all(copier: &mut Copier, duty: Duty) -> Result<()> {
    // The shards commit a part while the next one is scanned.
    let mut open: Option<(Part, Sent)> = None;
    loop {
        interrupt::check();
        interrupt::reload_configuration_if_asked();
        match part::claim(duty.task_id, duty.wave, duty.node, duty.pid)? {
            Claim::Parts(parts) => {
                for part in parts {
                    let sent = copier.send(&part);
                    let whole = sent.is_whole();
                    let before = open.replace((part, sent));
                    if !settle(copier, duty, before)? {
                        return Ok(());
                    }
                    if !whole && !settle(copier, duty, open.take())? {
                        return Ok(());
                    }
                }
            }
            // What is open may have to be tried again.
            Claim::Later(_) | Claim::Nothing if open.is_some() => {
                if !settle(copier, duty, open.take())? {
                    return Ok(());
                }
            }
            Claim::Later(milliseconds) => interrupt::wait_latch(milliseconds),
            Claim::Nothing => return Ok(()),
        }
    }
}

/// Waits for the shards and writes down how a part ended. False when the wave
/// can't go on.
fn settle(copier: &Copier, duty: Duty, open: Option<(Part, Sent)>) -> Result<bool> {
    let Some((part, sent)) = open else { return Ok(true) };
    let Duty { task_id, wave, node, pid } = duty;
    match copier.settle(sent) {
        Outcome::Done { rows, bytes } => part::done(task_id, &part, rows, bytes)?,
        Outcome::Rewritten => part::rewritten(task_id, &part)?,
        Outcome::SnapshotLost => {
            part::snapshot_lost(task_id, wave, node, pid)?;
            return Ok(false);
        }
        Outcome::Failed(error) => {
            part::failed(task_id, &part, &error)?;
            if error.policy() == Policy::Retry {
                // The other parts go to the same shards: not all of them at once.
                interrupt::wait_latch(i64::from(gucs::COPY_RETRY_DELAY.get()));
            }
        }
    }
    progress::tell();
    Ok(true)
}
