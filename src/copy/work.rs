//! What a copy worker does: claims parts and copies them until none is left.
use crate::copy::copier::{Copier, Outcome};
use crate::copy::part::{self, Claim, Part};
use crate::error::{Policy, Result};
use crate::pg::db::{self, Arg};
use crate::pg::{dynamic_worker, interrupt, memory, xact};
use crate::{gucs, state};

/// Copies parts of the wave until none is left or the snapshot is gone.
///
/// # Errors
/// Those of the state tables. Errors of a part are kept with the part.
pub fn work(task_id: i64, wave: i32) -> Result<()> {
    let pid = dynamic_worker::process_id();
    memory::keep_freed_blocks();
    set_up_session()?;
    part::free_own(task_id, pid)?;
    let Some(mut copier) = xact::transaction(|| prepare(task_id, wave))? else { return Ok(()) };
    let result = copy_all(&mut copier, task_id, wave, pid);
    copier.close();
    result
}

fn prepare(task_id: i64, wave: i32) -> Result<Option<Copier>> {
    let snapshot = db::text(
        "SELECT w.snapshot FROM reshard.wave AS w WHERE w.task_id = $1 AND w.wave = $2",
        &[Arg::I64(task_id), Arg::I32(wave)],
    )?;
    let Some(snapshot) = snapshot else { return Ok(None) };
    let destination = state::cluster::load(&state::task::load(task_id)?.destination)?;
    Copier::new(destination, state::token()?, task_id, wave, snapshot).map(Some)
}

/// What the text form of values depends on, here as on the shards.
fn set_up_session() -> Result<()> {
    xact::transaction(|| {
        db::run("SET search_path = pg_catalog")?;
        db::run("SET DateStyle = 'ISO'")?;
        db::run("SET IntervalStyle = 'postgres'")?;
        db::run("SET extra_float_digits = 3")?;
        db::run("SET TimeZone = 'UTC'")?;
        db::run("SET bytea_output = 'hex'")?;
        db::run("SET jit = off")?;
        db::run("SET statement_timeout = 0")?;
        db::run("SET lock_timeout = 0")?;
        db::run("SET idle_in_transaction_session_timeout = 0")
    })
}

fn copy_all(copier: &mut Copier, task_id: i64, wave: i32, pid: i32) -> Result<()> {
    loop {
        interrupt::check();
        interrupt::reload_configuration_if_asked();
        let parts = match part::claim(task_id, wave, pid)? {
            Claim::Parts(parts) => parts,
            Claim::Later(milliseconds) => {
                interrupt::wait_latch(milliseconds);
                continue;
            }
            Claim::Nothing => return Ok(()),
        };
        for part in &parts {
            if !copy_one(copier, task_id, wave, pid, part)? {
                return Ok(());
            }
        }
    }
}

/// False when the wave can't go on.
fn copy_one(copier: &mut Copier, task_id: i64, wave: i32, pid: i32, part: &Part) -> Result<bool> {
    match copier.copy(part) {
        Outcome::Done { rows, bytes } => part::done(task_id, part, rows, bytes)?,
        Outcome::Rewritten => part::rewritten(task_id, part)?,
        Outcome::SnapshotLost => {
            part::snapshot_lost(task_id, wave, pid)?;
            return Ok(false);
        }
        Outcome::Failed(error) => {
            part::failed(task_id, part, &error)?;
            if error.policy() == Policy::Retry {
                // The other parts go to the same shards: not all of them at once.
                interrupt::wait_latch(i64::from(gucs::COPY_RETRY_DELAY.get()));
            }
        }
    }
    Ok(true)
}
