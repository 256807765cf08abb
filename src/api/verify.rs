//! The verb that compares both clusters of a migration.
use pgrx::prelude::*;

use crate::api::argument::given;
use crate::api::elsewhere;
use crate::error::{Error, Result};
use crate::pg::report::or_raise;
use crate::pg::shmem;
use crate::state::options::Options;
use crate::state::task::{self, NewTask, Phase, Status, Task, Type};
use crate::state::verification;

/// Compares both clusters of a migration, row by row, while changes flow. Returns the
/// number of the task, which succeeds only if all rows are equal.
///
/// # Errors
/// 42704 for an unknown task or a table that does not move, 22023 for a percentage out
/// of range, 55000 where nothing flows.
// Declared here: pgrx has no array of regclass.
#[pg_extern(sql = r#"
CREATE FUNCTION reshard_verify(
    task_id bigint DEFAULT NULL,
    tables regclass[] DEFAULT NULL,
    sample_percent double precision DEFAULT 100
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn reshard_verify(
    task_id: Option<i64>,
    tables: Option<Vec<pg_sys::Oid>>,
    sample_percent: Option<f64>,
) -> i64 {
    let tables = tables.map(|oids| oids.into_iter().map(|oid| oid.to_u32()).collect::<Vec<_>>());
    or_raise(verify(task_id, tables.as_deref(), given(sample_percent, "sample_percent")))
}

fn verify(id: Option<i64>, tables: Option<&[u32]>, sample: f64) -> Result<i64> {
    elsewhere::require_here(id)?;
    if !(sample > 0.0 && sample <= 100.0) {
        return Err(Error::argument(format!("sample_percent {sample} is out of range"))
            .detail("It must be above 0 and at most 100."));
    }
    let migration = match id {
        Some(id) => migration_of(id)?,
        None => only_migration()?,
    };
    refuse_idle(&migration)?;
    let wanted = tables.unwrap_or_default();
    if tables.is_some_and(<[u32]>::is_empty) {
        return Err(Error::argument("no table is named").hint("Leave tables out to compare all."));
    }
    if let Some(name) = verification::not_moved(migration.id, wanted)?.into_iter().next() {
        return Err(Error::missing(format!(
            "table {name} is no part of migration {}",
            migration.id
        ))
        .hint(format!(
            "SELECT schema_name, table_name FROM reshard.table_copies WHERE task_id = {};",
            migration.id
        )));
    }
    if let Some(running) = verification::running(migration.id)? {
        notice!("task {} compares migration {} already", running.id, migration.id);
        return Ok(running.id);
    }
    let options = Options {
        node: migration.options.node,
        sample_percent: (sample < 100.0).then_some(sample),
        ..Options::default()
    };
    let id = task::insert(&NewTask {
        kind: Type::Verify,
        parent_id: Some(migration.id),
        phase: Phase::Verify,
        source: &migration.source,
        destination: &migration.destination,
        publication: &migration.publication,
        options,
    })?;
    verification::insert_tables(id, migration.id, wanted)?;
    shmem::wake_after_commit();
    Ok(id)
}

/// The migration that a task is, or is a part of.
fn migration_of(id: i64) -> Result<Task> {
    let task = task::load(id)?;
    let root = match task.parent_id {
        Some(parent) => task::load(parent)?,
        None => task,
    };
    match root.kind.is_migration() {
        true => Ok(root),
        false => Err(Error::state(format!("task {} is no migration", root.id))
            .detail(format!("Its type is {}.", root.kind.as_str()))),
    }
}

fn only_migration() -> Result<Task> {
    let mut live = task::live_migrations()?;
    match (live.pop(), live.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Error::missing("no migration is running")
            .hint("SELECT id, type, status, phase FROM reshard.tasks lists all tasks.")),
        (Some(_), false) => Err(Error::argument("several migrations are running")
            .hint("Name the one you mean: SELECT reshard_verify(task_id);")),
    }
}

/// Rows can be compared only while something brings changes to the other side.
fn refuse_idle(migration: &Task) -> Result<()> {
    let id = migration.id;
    if migration.is_ending() {
        return Err(migration.was_cancelled());
    }
    match migration.status {
        Status::Running | Status::Pending => {}
        Status::Failed => {
            return Err(Error::state(format!("task {id} does not run"))
                .detail(migration.error.clone().unwrap_or_default())
                .hint(format!("Go on with it first: SELECT reshard_resume({id});")));
        }
        status => {
            return Err(Error::state(format!("task {id} has ended"))
                .detail(format!(
                    "Its status is {}. Rows are compared while changes flow.",
                    status.as_str()
                ))
                .hint("Compare before reshard_complete()."));
        }
    }
    if migration.phase.is_flowing() || migration.phase == Phase::Cutover {
        return Ok(());
    }
    Err(Error::state(format!("task {id} can't be compared in phase {}", migration.phase.as_str()))
        .hint(format!("Wait for it: SELECT reshard_wait({id}, 'replicating');")))
}
