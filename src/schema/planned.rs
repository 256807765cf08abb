//! The plan of a task: the source's schema, without what the task's options
//! leave out, kept in the state tables.
use std::collections::BTreeMap;

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::pg::xact;
use crate::remote::{self, Endpoint, Needed, Purpose};
use crate::schema::dump::{self, LeftOut, Plan};
use crate::schema::selection::{self, FilledViews};
use crate::state;
use crate::state::event::Severity;
use crate::state::options::SchemaScope;
use crate::state::schema::Preamble;
use crate::state::task::Task;

/// Objects left out that an event names; the rest is counted.
const NAMED_LEFT_OUT: usize = 50;

/// Gives a task its plan: a row per statement and shard of the destination.
/// The source shard that is this database is dumped. Nothing happens where there is
/// a plan.
///
/// # Errors
/// 55000 where a program is missing, the dump fails or the planner refuses a
/// statement; 08006 where the source went away.
pub async fn plan(task: &Task, source: &Cluster, destination: &Cluster) -> Result<()> {
    if xact::transaction(|| state::schema::has_plan(task.id))? {
        return Ok(());
    }
    let plan = of_source(task, source).await?;
    xact::transaction(|| store(task, destination, &plan))
}

/// What of the source's schema, as it is now, belongs on the shards of a task.
///
/// # Errors
/// As [`plan`].
pub async fn of_source(task: &Task, source: &Cluster) -> Result<Plan> {
    let node = node(task, source)?;
    let plan = dump::plan_of(node, &task.options).await?;
    let filled = filled_views(node, &plan).await?;
    Ok(selection::select(plan, &task.options, needed(task, node).await?.as_ref(), &filled))
}

/// The materialized views that have been filled on the source; a dump doesn't say.
async fn filled_views(node: &Endpoint, plan: &Plan) -> Result<FilledViews> {
    if !plan.statements.iter().any(|s| s.kind == "refresh") {
        return Ok(FilledViews::new());
    }
    let session = remote::connect(node, Purpose::Schema).await?;
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text \
               FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
              WHERE c.relkind = 'm' AND c.relispopulated",
            &[],
        )
        .await?;
    let get = |e: tokio_postgres::Error| session.error(&e);
    rows.iter()
        .map(|row| Ok((row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?)))
        .collect()
}

/// The source shard that a task was started on: its schema counts.
pub(super) fn node<'c>(task: &Task, source: &'c Cluster) -> Result<&'c Endpoint> {
    source.shards.get(task.options.node as usize).ok_or_else(|| {
        Error::internal(format!("cluster \"{}\" has no shard {}", source.name, task.options.node))
    })
}

/// What the publication needs, where the task is about that alone.
async fn needed(task: &Task, node: &Endpoint) -> Result<Option<Needed>> {
    if task.options.schema_scope == SchemaScope::Database {
        return Ok(None);
    }
    let session = remote::connect(node, Purpose::Schema).await?;
    Needed::by_publication(&session, &task.publication).await.map(Some)
}

fn store(task: &Task, destination: &Cluster, plan: &Plan) -> Result<()> {
    let preamble =
        Preamble { server_version: plan.server_version.clone(), session: plan.session.clone() };
    let count = plan.statements.len();
    let statements = serde_json::to_value(&plan.statements)?;
    let shards: Vec<String> = destination.joining().map(|e| e.shard.to_string()).collect();
    let servers = shards.len();
    state::schema::insert_plan(task.id, shards, &preamble, statements)?;
    state::event::write(
        Some(task.id),
        Severity::Info,
        "schema_planned",
        &format!("{count} schema statements for each of {servers} shards"),
        serde_json::json!({ "server_version": plan.server_version }),
    )?;
    if plan.left_out.is_empty() {
        return Ok(());
    }
    state::event::write(
        Some(task.id),
        Severity::Info,
        "schema_left_out",
        &format!("{} schema statements of the source are left out", plan.left_out.len()),
        left_out_detail(&plan.left_out),
    )
}

/// Reason by reason: how many, and which objects. Never a statement's text,
/// which may hold a password.
fn left_out_detail(left_out: &[LeftOut]) -> serde_json::Value {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for item in left_out {
        let name = match (&item.schema_name, &item.object_name) {
            (Some(schema), Some(name)) => format!("{schema}.{name}"),
            (None, Some(name)) => name.clone(),
            _ => String::new(),
        };
        let kind = item.kind.replace('_', " ");
        let object = format!("{kind} {name}").trim_end().to_owned();
        reasons.entry(&item.reason).or_default().push(object);
    }
    reasons
        .into_iter()
        .map(|(reason, objects)| {
            serde_json::json!({
                "reason": reason,
                "count": objects.len(),
                "objects": &objects[..objects.len().min(NAMED_LEFT_OUT)],
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_out_objects_are_grouped_by_reason() {
        let item = |name: &str| LeftOut {
            kind: "user_mapping".into(),
            schema_name: None,
            object_name: Some(name.into()),
            reason: "r".into(),
        };
        let detail = left_out_detail(&[item("a"), item("b")]);
        assert_eq!(detail[0]["count"], 2);
        assert_eq!(detail[0]["objects"][1], "user mapping b");
    }
}
