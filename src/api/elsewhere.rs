//! Verbs for tasks that this database shows and that run on another shard of its cluster:
//! nothing is done about them here.
use crate::api::admin;
use crate::error::{Error, Result};
use crate::state::elsewhere::{self, Elsewhere};

/// The door, the whereabouts of the task, and the workers: in this order, since a shard
/// that coordinates nothing needs no workers.
///
/// # Errors
/// As [`admin::require`] and [`refuse`]; then as [`admin::require_workers`].
pub fn require_here(id: Option<i64>) -> Result<()> {
    admin::require()?;
    refuse(id)?;
    admin::require_workers()
}

/// Refuses a task that runs on another shard; without a number, the migration, where none
/// is here.
///
/// # Errors
/// 55000 that names the shard and where it is.
pub fn refuse(id: Option<i64>) -> Result<()> {
    let found = match id {
        Some(id) => elsewhere::find(id)?,
        None => elsewhere::migration()?,
    };
    found.map_or(Ok(()), |task| Err(error(&task)))
}

fn error(task: &Elsewhere) -> Error {
    let Elsewhere { id, source, shard, .. } = task;
    let place = match &task.address {
        Some(address) => format!("shard {shard} of cluster \"{source}\" ({address})"),
        None => format!("shard {shard} of cluster \"{source}\""),
    };
    let ended = task.status.is_final();
    let verb = if ended { "ran" } else { "runs" };
    Error::state(format!("task {id} {verb} on shard {shard} of cluster \"{source}\""))
        .detail(format!(
            "This database is another shard of that cluster and only shows the task; its status is {}.",
            task.status.as_str()
        ))
        .hint(format!("Call it in the database of {place}."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::state::task::Status;

    #[test]
    fn the_hint_says_where_to_call() {
        let mut task = Elsewhere {
            id: 7,
            source: "prod".to_owned(),
            status: Status::Running,
            shard: 1,
            address: Some("dbname=app host=a port=5432".to_owned()),
        };
        let known = error(&task);
        assert_eq!(known.sqlstate(), "55000");
        assert_eq!(known.message, "task 7 runs on shard 1 of cluster \"prod\"");
        assert_eq!(
            known.hint.unwrap(),
            "Call it in the database of shard 1 of cluster \"prod\" (dbname=app host=a port=5432)."
        );
        task.address = None;
        task.status = Status::Succeeded;
        let ended = error(&task);
        assert_eq!(ended.message, "task 7 ran on shard 1 of cluster \"prod\"");
        assert_eq!(ended.hint.unwrap(), "Call it in the database of shard 1 of cluster \"prod\".");
    }
}
