//! Before a cutover: whether the shards' schema is still the source's. What has
//! changed on the source since the plan was made must have been changed on every
//! shard as well.
//!
//! The source of now is compared with the plan, not with the shards: PostgreSQL
//! writes some expressions otherwise after a restore, and such a difference must
//! not stop a cutover. Only what has changed is looked for on the shards. What the
//! tables of the migration consist of is compared by name as well.
use std::collections::{BTreeSet, HashSet};

use futures::future::try_join_all;

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::pg::xact;
use crate::remote::quote::qualified;
use crate::remote::{self, Endpoint, Purpose};
use crate::schema::dump::{self, Planned};
use crate::schema::{failure, planned};
use crate::state;
use crate::state::options::ForeignKeys;
use crate::state::schema::Statement;
use crate::state::table::Table;
use crate::state::task::{Task, Type};

/// Differences that an error shows; the rest is counted.
const SHOWN: usize = 20;
/// Kinds of statements that a migration itself changes, or that no dump has.
const OURS: &[&str] = &["replica_identity", "refresh"];

/// Refuses a cutover where the schemas differ. Only of a task that made them.
///
/// # Errors
/// 55000 with the differences; those of the dumps.
pub async fn refuse_drift(task: &Task, source: &Cluster, destination: &Cluster) -> Result<()> {
    if task.kind != Type::Reshard {
        return Ok(());
    }
    let (before, tables) =
        xact::transaction(|| Ok((state::schema::planned(task.id)?, state::table::load(task.id)?)))?;
    let now = planned::of_source(task, source).await?.statements;
    let changes = changes(&before, now);
    let mut differences = match changes.is_empty() {
        true => Vec::new(),
        false => unfollowed(task, destination, &changes).await?,
    };
    if differences.is_empty() {
        differences = parts_that_differ(task, &tables, source, destination).await?;
    }
    match differences.is_empty() {
        true => Ok(()),
        false => Err(error(&differences)),
    }
}

/// Refuses the way back where columns of the tables differ: what clients wrote into those
/// of the shards would stay there. Indexes and constraints may differ by then. Only of a
/// task that made them.
///
/// # Errors
/// 55000 with the differences.
pub async fn refuse_other_columns(
    task: &Task,
    source: &Cluster,
    destination: &Cluster,
) -> Result<()> {
    if task.kind != Type::Reshard {
        return Ok(());
    }
    let names: Vec<String> =
        xact::transaction(|| state::table::load(task.id))?.iter().map(Table::qualified).collect();
    let of = |cluster: &Cluster| {
        let servers: Vec<Endpoint> = cluster.joining().cloned().collect();
        let names = &names;
        async move {
            try_join_all(servers.into_iter().map(|server| async move {
                let found = parts(&server, names).await?;
                Ok::<_, Error>((server, found))
            }))
            .await
        }
    };
    let (old, new) = futures::future::try_join(of(source), of(destination)).await?;
    let mut differences = Vec::new();
    for (node, here) in &old {
        for (shard, there) in &new {
            let (node, shard) = (node.to_string(), shard.to_string());
            differences.extend(other_columns((&node, here), (&shard, there)));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::state("columns of the old cluster differ from those of the new one")
        .detail(listed("Rows would not come back as they are:", &differences))
        .hint(format!(
            "Make the same changes on the old cluster, as a superuser: SET reshard.ddl_guard = off; \
             ALTER TABLE ...; or take them back on the shards; then: SELECT reshard_rollback({});",
            task.id
        )))
}

/// What a server's tables consist of, with the tables' names.
type Parts = BTreeSet<(String, String)>;

/// Columns that one server has and the other has not. One that is NOT NULL on the new
/// cluster alone is no obstacle.
fn other_columns((node, here): (&str, &Parts), (shard, there): (&str, &Parts)) -> Vec<String> {
    let columns = |parts: &Parts| -> Parts {
        parts.iter().filter(|(_, part)| part.starts_with("column ")).cloned().collect()
    };
    let (here, there) = (columns(here), columns(there));
    let nullable =
        |(table, part): &(String, String)| (table.clone(), part.replacen(" NOT NULL", "", 1));
    let fits = |part: &(String, String)| here.contains(part) || here.contains(&nullable(part));
    let met: Parts = there.iter().flat_map(|part| [part.clone(), nullable(part)]).collect();
    let more =
        there.iter().filter(|part| !fits(part)).map(|(t, c)| format!("{shard} has {c} of {t}"));
    let less = here
        .iter()
        .filter(|part| !met.contains(*part))
        .map(|(t, c)| format!("{node} has {c} of {t}"));
    more.chain(less).collect()
}

/// Changes on the source that a shard has not followed.
async fn unfollowed(task: &Task, destination: &Cluster, changes: &Changes) -> Result<Vec<String>> {
    let shards = try_join_all(destination.joining().map(|shard| async move {
        let plan = dump::plan_of(shard, &task.options).await?;
        Ok::<_, Error>((shard.to_string(), plan.statements))
    }))
    .await?;
    Ok(shards.iter().flat_map(|(name, there)| differences(changes, name, there)).collect())
}

/// Parts of the tables (columns, indexes, constraints, triggers) that a shard
/// lacks or has too much.
async fn parts_that_differ(
    task: &Task,
    tables: &[Table],
    source: &Cluster,
    destination: &Cluster,
) -> Result<Vec<String>> {
    let node = planned::node(task, source)?;
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    let mut wanted = parts(node, &names).await?;
    let others: Vec<&Endpoint> =
        source.shards.iter().filter(|other| other.shard != node.shard).collect();
    let mut out = against(&wanted, &others, &names).await?;
    if task.options.foreign_keys == ForeignKeys::Skip {
        for key in &task.options.unfit_foreign_keys {
            let table = qualified(&key.schema_name, &key.table_name);
            wanted.retain(|(name, part)| {
                *name != table
                    || part.trim_start_matches("constraint ").trim_matches('"') != key.name
            });
        }
    }
    let shards: Vec<&Endpoint> = destination.joining().collect();
    out.extend(against(&wanted, &shards, &names).await?);
    Ok(out)
}

/// How the parts of tables on these servers differ from those that are wanted.
async fn against(wanted: &Parts, servers: &[&Endpoint], names: &[String]) -> Result<Vec<String>> {
    let found = try_join_all(servers.iter().map(|server| parts(server, names))).await?;
    let mut out = Vec::new();
    for (shard, there) in servers.iter().zip(&found) {
        let lacks =
            wanted.difference(there).map(|(t, part)| format!("{shard} lacks: {part} of {t}"));
        let extra =
            there.difference(wanted).map(|(t, part)| format!("{shard} has more: {part} of {t}"));
        out.extend(lacks.chain(extra));
    }
    Ok(out)
}

/// What tables consist of on one server, with their names.
async fn parts(server: &Endpoint, names: &[String]) -> Result<Parts> {
    let session = remote::connect(server, Purpose::Schema).await?;
    let rows = session.query(include_str!("parts.sql"), &[&names]).await?;
    rows.iter()
        .map(|row| {
            let get = |e: tokio_postgres::Error| session.error(&e);
            Ok((row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?))
        })
        .collect()
}

/// What the source's schema has gained and lost.
#[derive(Default)]
struct Changes {
    come: Vec<Planned>,
    gone: Vec<Statement>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.come.is_empty() && self.gone.is_empty()
    }
}

fn changes(before: &[Statement], now: Vec<Planned>) -> Changes {
    let old: HashSet<Key> = before.iter().map(key_of_statement).collect();
    let new: HashSet<Key> = now.iter().map(key_of_planned).collect();
    let gone = before
        .iter()
        .filter(|s| !OURS.contains(&s.kind.as_str()) && !new.contains(&key_of_statement(s)))
        .cloned()
        .collect();
    let come = now
        .into_iter()
        .filter(|s| !OURS.contains(&s.kind.as_str()) && !old.contains(&key_of_planned(s)))
        .collect();
    Changes { come, gone }
}

/// What statements are compared by.
type Key = (Vec<String>, String);

/// A statement's settings and its text. A switch gives the
/// shards' sequences increments and ranges of their own; these go by their names.
fn key(kind: &str, names: [&Option<String>; 4], settings: &[String], sql: &str) -> Key {
    match kind {
        "sequence" | "identity" => (Vec::new(), format!("{kind} {names:?}")),
        _ => (settings.to_vec(), sql.to_owned()),
    }
}

fn key_of_planned(s: &Planned) -> Key {
    let names = [&s.schema_name, &s.object_name, &s.table_schema, &s.table_name];
    key(&s.kind, names, &s.settings, &s.sql)
}

fn key_of_statement(s: &Statement) -> Key {
    let names = [&s.schema_name, &s.object_name, &s.table_schema, &s.table_name];
    key(&s.kind, names, &s.settings, &s.sql)
}

/// What of the changes a shard doesn't have.
fn differences(changes: &Changes, shard: &str, there: &[Planned]) -> Vec<String> {
    let known: HashSet<Key> = there.iter().map(key_of_planned).collect();
    let come = changes.come.iter().filter(|s| !known.contains(&key_of_planned(s))).map(|s| {
        let text = failure::cut(s.shown.as_deref().unwrap_or(&s.sql));
        format!("{shard} lacks: {text}")
    });
    let gone = changes
        .gone
        .iter()
        .filter(|s| known.contains(&key_of_statement(s)))
        .map(|s| format!("{shard} still has: {}", failure::shown(s)));
    come.chain(gone).collect()
}

fn error(differences: &[String]) -> Error {
    let detail = listed("Since the schema was brought to the shards:", differences);
    Error::state("the schemas of source and shards differ").detail(detail).hint(
        "Make the same changes on every server, or take them back; then ask for the cutover again.",
    )
}

/// Differences line by line; many are cut.
fn listed(headline: &str, differences: &[String]) -> String {
    let shown = differences[..differences.len().min(SHOWN)].join("\n");
    let mut out = format!("{headline}\n{shown}");
    if differences.len() > SHOWN {
        out.push_str(&format!("\nand {} more differences", differences.len() - SHOWN));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(sql: &str) -> Planned {
        Planned { sql: sql.into(), kind: "table".into(), ..Planned::default() }
    }

    #[test]
    fn only_columns_matter_on_the_way_back() {
        let parts = |all: &[&str]| all.iter().map(|part| ("t".into(), (*part).into())).collect();
        let old: Parts = parts(&["column a integer", "column b text NOT NULL", "index i"]);
        let of = |new: &[&str]| other_columns(("old", &old), ("new", &parts(new)));
        let same = of(&["column a integer NOT NULL", "column b text NOT NULL", "index j"]);
        assert_eq!(same, Vec::<String>::new());
        assert_eq!(
            of(&["column a integer", "column b text", "column c text"]),
            [
                "new has column b text of t",
                "new has column c text of t",
                "old has column b text NOT NULL of t"
            ]
        );
        assert_eq!(of(&["column b text NOT NULL"]), ["old has column a integer of t"]);
    }

    #[test]
    fn only_what_changed_on_the_source_is_looked_for() {
        let plan = [
            Statement::of("table", "A"),
            Statement::of("table", "B"),
            Statement::of("replica_identity", "R"),
        ];
        let changes = changes(&plan, vec![now("A"), now("C")]);
        assert_eq!(changes.come.len(), 1);
        assert_eq!(changes.gone.len(), 1);
        // A shard whose dump looks otherwise, but has the change.
        assert_eq!(differences(&changes, "shard 0", &[now("a"), now("C")]), Vec::<String>::new());
        let found = differences(&changes, "shard 1", &[now("A"), now("B")]);
        assert_eq!(found, ["shard 1 lacks: C", "shard 1 still has: B"]);
    }
}
