//! Verbs that start a task.
use pgrx::prelude::*;
use pgrx::JsonB;

use crate::api::argument::given;
use crate::api::{admin, preflight};
use crate::error::{Error, Result};
use crate::pg::report::or_raise;
use crate::pg::shmem;
use crate::pg::xact::with_new_snapshot;
use crate::preflight::Verb;
use crate::schema;
use crate::state::options::Options;
use crate::state::task::{self, NewTask, Status, Type};
use crate::state::{cluster, traffic};

/// Moves the tables of a publication from one cluster to another: schema, copy,
/// replication and, unless told otherwise, cutover. Returns the task's number.
///
/// # Errors
/// What preflight finds; 55000 while another migration uses the database.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_start(
    source: Option<&str>,
    destination: Option<&str>,
    publication: Option<&str>,
    auto_cutover: default!(Option<bool>, true),
    options: default!(Option<JsonB>, "'{}'"),
) -> i64 {
    let auto_cutover = given(auto_cutover, "auto_cutover");
    begin(Type::Reshard, [source, destination, publication], options, |options| {
        Ok(Options { auto_cutover, ..options })
    })
}

/// Copies the tables of a publication into a schema that is there, then keeps
/// replicating until it is cut over.
///
/// # Errors
/// As `reshard_start`.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_copy_data(
    source: Option<&str>,
    destination: Option<&str>,
    publication: Option<&str>,
    slot_name: default!(Option<String>, "NULL"),
    options: default!(Option<JsonB>, "'{}'"),
) -> i64 {
    begin(Type::CopyData, [source, destination, publication], options, |options| match slot_name {
        Some(_) => Err(Error::argument("a copy can't begin at an existing slot")
            .detail("A slot that exists has no snapshot to copy from any more.")
            .hint("Leave slot_name out; reshard_replicate() takes an existing slot.")),
        None => Ok(options),
    })
}

/// Replicates without a copy: from now on, or from an existing slot.
///
/// # Errors
/// As `reshard_start`; 42704 where there is no such slot.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_replicate(
    source: Option<&str>,
    destination: Option<&str>,
    publication: Option<&str>,
    slot_name: default!(Option<String>, "NULL"),
    options: default!(Option<JsonB>, "'{}'"),
) -> i64 {
    begin(Type::Replicate, [source, destination, publication], options, |options| {
        if let Some(slot) = &slot_name {
            require_slot(slot)?;
        }
        Ok(Options { slot_name, ..options })
    })
}

/// Brings one phase of the source's schema to the shards.
///
/// # Errors
/// As `reshard_start`; 22023 for an unknown phase.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_schema_sync(
    phase: Option<&str>,
    source: Option<&str>,
    destination: Option<&str>,
    publication: Option<&str>,
    dry_run: default!(Option<bool>, false),
    options: default!(Option<JsonB>, "'{}'"),
) -> i64 {
    let (phase, dry_run) = (given(phase, "phase"), given(dry_run, "dry_run"));
    begin(Type::SchemaSync, [source, destination, publication], options, |options| {
        schema::Phase::parse(phase)?;
        Ok(Options { schema_phase: Some(phase.to_owned()), dry_run, ..options })
    })
}

/// What all of them do: `choose` adds to the options what a verb's own arguments say.
fn begin(
    kind: Type,
    [source, destination, publication]: [Option<&str>; 3],
    options: Option<JsonB>,
    choose: impl FnOnce(Options) -> Result<Options>,
) -> i64 {
    let (source, destination) = (given(source, "source"), given(destination, "destination"));
    let (publication, options) = (given(publication, "publication"), given(options, "options"));
    or_raise(
        options_of(options)
            .and_then(choose)
            .and_then(|options| start(kind, source, destination, publication, options)),
    )
}

fn options_of(options: JsonB) -> Result<Options> {
    admin::require_workers()?;
    Options::from_user(options.0)
}

fn start(
    kind: Type,
    source: &str,
    destination: &str,
    publication: &str,
    options: Options,
) -> Result<i64> {
    if source == destination {
        return Err(Error::argument("source and destination are the same cluster"));
    }
    cluster::load(source)?;
    cluster::load(destination)?;
    if kind.is_migration() {
        if let Some(running) = running(kind, source, destination, publication)? {
            return Ok(running);
        }
        refuse_inactive(source)?;
    }
    let verb = match kind {
        Type::Reshard => Verb::Start,
        Type::SchemaSync => Verb::SchemaSync,
        Type::Replicate => Verb::Replicate,
        _ => Verb::CopyData,
    };
    let options = preflight::refuse(verb, source, destination, publication, options)?;
    let begun = task::begin(&NewTask {
        kind,
        parent_id: None,
        phase: kind.first_phase(),
        source,
        destination,
        publication,
        options,
    })?;
    if let Some(id) = begun {
        shmem::wake_after_commit();
        return Ok(id);
    }
    // Another one was started while this one looked around.
    with_new_snapshot(|| running(kind, source, destination, publication))?.ok_or_else(|| {
        Error::state("another migration uses this database").hint("See reshard.tasks.")
    })
}

/// The task that does this already; an error where another one is in the way: the
/// fence is one for the whole database.
fn running(kind: Type, source: &str, destination: &str, publication: &str) -> Result<Option<i64>> {
    let Some(other) = task::live_migrations()?.into_iter().next() else { return Ok(None) };
    let same = other.source == source
        && other.destination == destination
        && other.publication == publication
        && (other.kind == kind || kind == Type::Replicate);
    if same && other.status != Status::Failed {
        notice!("task {} does this already: phase {}", other.id, other.phase.as_str());
        return Ok(Some(other.id));
    }
    let id = other.id;
    let hint = match other.status {
        Status::Failed if !other.is_ending() => format!("Go on with SELECT reshard_resume({id}); or end it with SELECT reshard_cancel({id});"),
        _ => format!("End it first: SELECT reshard_cancel({id}); or, after the switch, SELECT reshard_complete({id});"),
    };
    Err(Error::state(format!("migration {id} uses this database"))
        .detail(format!(
            "It moves publication \"{}\" from \"{}\" to \"{}\"; its status is {}, its phase {}.",
            other.publication,
            other.source,
            other.destination,
            other.status.as_str(),
            other.phase.as_str()
        ))
        .hint(hint))
}

fn refuse_inactive(source: &str) -> Result<()> {
    match traffic::find(source)? {
        Some(flag) if flag.active_cluster != source => {
            Err(Error::state(format!("cluster \"{source}\" is not active"))
                .detail(format!(
                    "Traffic goes to cluster \"{}\" since epoch {}.",
                    flag.active_cluster, flag.epoch
                ))
                .hint(format!(
                    "To use the old cluster again all the same: SELECT reshard_unfence('{source}');"
                )))
        }
        _ => Ok(()),
    }
}

fn require_slot(slot: &str) -> Result<()> {
    let exists = crate::pg::db::truth(
        "SELECT true FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 \
            AND plugin = 'pgoutput' AND database = pg_catalog.current_database()",
        &[crate::pg::db::Arg::Text(slot)],
    )?;
    match exists {
        true => Ok(()),
        false => Err(Error::missing(format!("replication slot \"{slot}\" does not exist"))
            .detail("It must be a logical slot of plugin pgoutput in this database.")
            .hint("SELECT slot_name, plugin, database FROM pg_replication_slots;")),
    }
}
