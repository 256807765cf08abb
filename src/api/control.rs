//! Verbs for a task that exists. Each only writes an intent.
use pgrx::prelude::*;
use pgrx::JsonB;

use crate::api::admin;
use crate::api::argument::given;
use crate::api::{elsewhere, foreseen};
use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};
use crate::pg::report::or_raise;
use crate::pg::shmem;
use crate::state::intent::{self, Args, Intent, Verb};
use crate::state::task::{self, Phase, Status, Task, Type};
use crate::state::traffic;

/// Makes the destination active; with the number of a replication task, moves
/// traffic along that flow; without a number, along the one live flow.
///
/// # Errors
/// 42704 for an unknown task, 55000 where it can't be switched now.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_cutover(
    task_id: default!(Option<i64>, "NULL"),
    dry_run: default!(Option<bool>, false),
    options: default!(Option<JsonB>, "'{}'"),
) -> i64 {
    let (dry_run, options) = (given(dry_run, "dry_run"), given(options, "options"));
    or_raise(args(dry_run, options.0).and_then(|args| cutover(task_id, &args)))
}

/// What a dry run is to leave out: `{"fence": false}` holds no writers.
fn args(dry_run: bool, options: serde_json::Value) -> Result<Args> {
    let serde_json::Value::Object(map) = &options else {
        return Err(Error::argument("options must be a JSON object"));
    };
    let mut args = Args { dry_run, no_fence: false };
    for (key, value) in map {
        if key != "fence" {
            return Err(Error::argument(format!("unknown option \"{key}\""))
                .hint("The option of a cutover is fence."));
        }
        let serde_json::Value::Bool(fence) = value else {
            return Err(Error::argument("option \"fence\" must be true or false"));
        };
        args.no_fence = !fence;
    }
    match args.no_fence && !dry_run {
        true => Err(Error::argument("a cutover needs the fence")
            .hint("Option \"fence\" is for a dry run: SELECT reshard_cutover(task_id, dry_run => true, options => '{\"fence\": false}');")),
        false => Ok(args),
    }
}

fn cutover(id: Option<i64>, args: &Args) -> Result<i64> {
    elsewhere::require_here(id)?;
    let (root, forward) = match id {
        Some(id) => {
            let task = task::load(id)?;
            match task.parent_id {
                Some(parent) if task.kind == Type::Replication => {
                    let root = task::load(parent)?;
                    let forward = task.source == root.source;
                    (root, forward)
                }
                Some(parent) if task.kind != Type::Verify => (task::load(parent)?, true),
                Some(_) => (task, true),
                None => (task, true),
            }
        }
        None => {
            let root = only_migration()?;
            let forward = goes_forth(&root)?;
            let (from, to) = match forward {
                true => (&root.source, &root.destination),
                false => (&root.destination, &root.source),
            };
            notice!("task {} moves traffic from cluster \"{from}\" to cluster \"{to}\"", root.id);
            (root, forward)
        }
    };
    let verb = if forward { Verb::Cutover } else { Verb::Rollback };
    ask_switch(&root, verb, args)
}

/// Which way a cutover of the one live flow goes. One that is asked for twice is not two.
fn goes_forth(root: &Task) -> Result<bool> {
    let asked = intent::waiting(root.id)?;
    let way = |asked: &Intent| match asked.verb {
        Verb::Cutover if !asked.args.dry_run => Some(true),
        Verb::Rollback => Some(false),
        _ => None,
    };
    Ok(asked.iter().rev().find_map(way).unwrap_or(root.phase != Phase::Switched))
}

/// Makes the source active again, without loss; it can be cut over again.
///
/// # Errors
/// As `reshard_cutover`.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_rollback(task_id: default!(Option<i64>, "NULL")) -> i64 {
    or_raise(elsewhere::require_here(task_id).and_then(|()| {
        let root = match task_id {
            Some(id) => task::load_root(id)?,
            None => only_migration()?,
        };
        ask_switch(&root, Verb::Rollback, &Args::default())
    }))
}

/// The one migration that has flows.
fn only_migration() -> Result<Task> {
    let mut live: Vec<Task> =
        task::live_migrations()?.into_iter().filter(|t| t.status != Status::Failed).collect();
    match (live.pop(), live.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Error::missing("no migration is running")
            .hint("SELECT id, type, status, phase FROM reshard.tasks lists all tasks.")),
        (Some(_), false) => Err(Error::argument("several migrations are running")
            .hint("Name the one you mean: SELECT reshard_cutover(task_id);")),
    }
}

fn ask_switch(root: &Task, verb: Verb, args: &Args) -> Result<i64> {
    let id = root.id;
    require_migration(root)?;
    if is_asked(id, verb, args)? {
        return Ok(id);
    }
    let task = foreseen::of(root.clone())?;
    let (target, is_active, possible) = match verb {
        Verb::Rollback => (
            &task.source,
            task.phase < Phase::Cutover || task.phase == Phase::RolledBack,
            matches!(task.phase, Phase::Switched | Phase::Cutover),
        ),
        _ => (
            &task.destination,
            task.phase.is_after_switch(),
            matches!(task.phase, Phase::Replicating | Phase::RolledBack | Phase::Cutover),
        ),
    };
    if is_active {
        notice!("cluster \"{target}\" is active already");
        return Ok(id);
    }
    require_running(root, &task)?;
    if !possible {
        return Err(Error::state(format!(
            "task {id} can't be switched in phase {}",
            task.phase.as_str()
        ))
        .hint(format!("Wait for it: SELECT reshard_wait({id}, 'replicating');")));
    }
    ask(id, verb, args)?;
    Ok(id)
}

/// Ends a migration after the switch. The old cluster stays fenced.
///
/// # Errors
/// 42704 for an unknown task, 55000 before the switch.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_complete(task_id: Option<i64>) -> i64 {
    let task_id = given(task_id, "task_id");
    or_raise(elsewhere::require_here(Some(task_id)).and_then(|()| {
        let root = task::load_root(task_id)?;
        require_migration(&root)?;
        if root.status == Status::Succeeded {
            notice!("task {} is complete already", root.id);
            return Ok(root.id);
        }
        if is_asked(root.id, Verb::Complete, &Args::default())? {
            return Ok(root.id);
        }
        let task = foreseen::of(root.clone())?;
        if task.status == Status::Cancelled {
            return Err(has_ended(&root, &task));
        }
        if !matches!(task.phase, Phase::Switched | Phase::Complete | Phase::Cutover) {
            return Err(Error::state(format!(
                "task {} can't be completed in phase {}",
                root.id,
                task.phase.as_str()
            ))
            .hint(format!(
                "Switch first: SELECT reshard_cutover({0}); or give up: SELECT reshard_cancel({0});",
                root.id
            )));
        }
        ask(root.id, Verb::Complete, &Args::default())?;
        Ok(root.id)
    }))
}

/// Ends a migration before the switch and leaves nothing behind.
///
/// # Errors
/// 42704 for an unknown task, 55000 after the switch.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_cancel(task_id: Option<i64>) -> i64 {
    let task_id = given(task_id, "task_id");
    or_raise(elsewhere::require_here(Some(task_id)).and_then(|()| {
        let root = task::load_root(task_id)?;
        if root.status.is_final() {
            notice!("task {} has ended already: {}", root.id, root.status.as_str());
            return Ok(root.id);
        }
        if is_asked(root.id, Verb::Cancel, &Args::default())? {
            return Ok(root.id);
        }
        // A switch that is only asked for may yet come to nothing.
        let foreseen = foreseen::of(root.clone())?;
        if root.phase.is_after_switch() && foreseen.phase.is_after_switch() {
            return Err(Error::state(format!(
                "task {} can't be cancelled after the switch",
                root.id
            ))
            .hint(format!(
                "Go back first: SELECT reshard_rollback({0}); or end it: SELECT reshard_complete({0});",
                root.id
            )));
        }
        ask(root.id, Verb::Cancel, &Args::default())?;
        Ok(root.id)
    }))
}

/// Stops a task; `reshard_resume` goes on with it.
///
/// # Errors
/// 42704 for an unknown task.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_stop_task(task_id: Option<i64>) -> i64 {
    let task_id = given(task_id, "task_id");
    or_raise(elsewhere::require_here(Some(task_id)).and_then(|()| {
        let root = task::load_root(task_id)?;
        let task = foreseen::of(root.clone())?;
        if root.is_ending() {
            return Err(root.was_cancelled());
        }
        if task.status.is_final() || task.stopped {
            notice!("task {} does not run", root.id);
            return Ok(root.id);
        }
        ask(root.id, Verb::Stop, &Args::default())?;
        Ok(root.id)
    }))
}

/// Goes on with a failed or stopped task from where it was.
///
/// # Errors
/// 42704 for an unknown task, 55000 for one that has ended.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_resume(task_id: Option<i64>) -> i64 {
    let task_id = given(task_id, "task_id");
    or_raise(elsewhere::require_here(Some(task_id)).and_then(|()| {
        let root = task::load_root(task_id)?;
        let task = foreseen::of(root.clone())?;
        if root.is_ending() {
            return Err(root.was_cancelled());
        }
        if task.status.is_final() {
            return Err(has_ended(&root, &task).hint("Start a new one: SELECT reshard_start(...);"));
        }
        if task.status != Status::Failed {
            notice!("task {} runs already", root.id);
            return Ok(root.id);
        }
        // Seen as pending at once: whoever looks at it next must not meet the old error.
        if root.status == Status::Failed {
            task::reopen(&root)?;
        }
        ask(root.id, Verb::Resume, &Args::default())?;
        Ok(root.id)
    }))
}

/// Opens a cluster that a completed migration left fenced: its triggers go, and
/// it takes writes again. The data on it is as old as the switch.
///
/// # Errors
/// 55000 while a migration uses it.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_unfence(cluster: Option<&str>) {
    or_raise(unfence(given(cluster, "cluster")));
}

fn unfence(name: &str) -> Result<()> {
    admin::require()?;
    let used = task::live_migrations()?.into_iter().find(|t| t.source == name);
    if let Some(task) = used {
        return Err(Error::state(format!("cluster \"{name}\" is used by task {}", task.id))
            .hint(format!("Complete or cancel it first: SELECT reshard_complete({});", task.id)));
    }
    if let Some(task) = crate::state::joined()? {
        return Err(Error::state(format!("cluster \"{name}\" is used by a migration"))
            .detail(format!("It is {task}, started on another shard of the source."))
            .hint("Complete or cancel it there first."));
    }
    if traffic::find(name)?.is_none() {
        notice!("cluster \"{name}\" is not fenced");
        return Ok(());
    }
    db::run(
        "DO $unfence$ DECLARE fenced record; BEGIN \
           FOR fenced IN SELECT g.tgrelid::pg_catalog.regclass AS relation \
                           FROM pg_catalog.pg_trigger AS g \
                          WHERE g.tgname = 'reshard_fence' AND NOT g.tgisinternal LOOP \
             EXECUTE pg_catalog.format('DROP TRIGGER reshard_fence ON %s', fenced.relation); \
           END LOOP; END $unfence$",
    )?;
    db::execute("DELETE FROM reshard.traffic WHERE name = $1", &[Arg::Text(name)])?;
    // Unlike setval(), taken back by a ROLLBACK; and it keeps nobody from reading.
    db::run("ALTER SEQUENCE reshard.latch RESTART WITH 1")
}

fn require_migration(root: &Task) -> Result<()> {
    match root.kind.is_migration() {
        true => Ok(()),
        false => Err(Error::state(format!("task {} is no migration", root.id))
            .detail(format!("Its type is {}.", root.kind.as_str()))),
    }
}

fn require_running(root: &Task, foreseen: &Task) -> Result<()> {
    match foreseen.status {
        Status::Pending | Status::Running => Ok(()),
        Status::Failed => Err(Error::state(format!("task {} does not run", root.id))
            .detail(foreseen.error.clone().unwrap_or_default())
            .hint(format!("Go on with it first: SELECT reshard_resume({});", root.id))),
        Status::Succeeded | Status::Cancelled => Err(has_ended(root, foreseen)),
    }
}

/// For a task that has ended, or was asked to.
fn has_ended(root: &Task, foreseen: &Task) -> Error {
    if root.is_ending() {
        return root.was_cancelled();
    }
    match root.status.is_final() {
        true => Error::state(format!("task {} has ended", root.id))
            .detail(format!("Its status is {}.", root.status.as_str())),
        false => Error::state(format!("task {} was asked to end", root.id))
            .detail(format!("Its status will be {}.", foreseen.status.as_str())),
    }
}

/// Whether the same is the last that was asked of a task and waits for a worker; says so.
fn is_asked(id: i64, verb: Verb, args: &Args) -> Result<bool> {
    let same =
        intent::waiting(id)?.pop().is_some_and(|last| last.verb == verb && &last.args == args);
    if same {
        notice!("this was asked of task {id} already: it waits for a worker, or is under way");
    }
    Ok(same)
}

/// Writes what is asked of a task, and has a worker act on it after the commit.
///
/// # Errors
/// SPI's.
pub(super) fn ask(id: i64, verb: Verb, args: &Args) -> Result<()> {
    intent::insert(id, verb, args)?;
    shmem::wake_after_commit();
    Ok(())
}
