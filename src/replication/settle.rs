//! Makes tables fit to be published: a replica identity that lets UPDATE and
//! DELETE through, the trigger that writes whole rows when a sharding key
//! changes, and the fence.
//!
//! This comes before the filtered publication exists: a row filter over a column
//! outside of the replica identity makes the application's own UPDATE and
//! DELETE fail (`CheckCmdReplicaIdentity` in src/backend/executor/execReplication.c).
use std::collections::BTreeMap;

use crate::cluster::{Cluster, Side};
use crate::error::{Error, Kind, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::Connection;
use crate::replication::guard::GUARDS;
use crate::replication::{identity_index, locked, staying};
use crate::state::options::ReplicaIdentity;
use crate::state::table::Table;

/// Name of the fence's trigger on every table.
pub const FENCE_TRIGGER: &str = "reshard_fence";
/// Name of the trigger that writes whole rows; the last one of its kind to fire.
const DETOAST_TRIGGER: &str = "zzz_reshard_detoast";

/// The cluster that a server belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The cluster; the fence names it.
    pub cluster: &'a Cluster,
    /// Its part in the migration.
    pub side: Side,
    /// Some shards are in both clusters.
    pub stays: bool,
}

impl Place<'_> {
    /// Triggers go with `DROP EXTENSION` where the server has the extension.
    fn has_extension(self) -> bool {
        self.side == Side::Source
    }

    /// Whether each of its shards has a part of the table's rows alone, or will have where
    /// it stays.
    pub(super) fn has_parts_of(self, table: &Table) -> bool {
        self.cluster.size() > 1 && table.is_sharded(self.side)
            || self.stays && table.is_sharded(Side::Destination)
    }
}

/// What is done to one table.
pub struct Settings<'a> {
    /// Where its server belongs.
    pub place: Place<'a>,
    /// Columns of the row filters that this server's publications will have.
    pub filter_columns: Vec<String>,
    /// How to get an identity.
    pub identity: Identity<'a>,
    /// Columns may be added while the migration lasts: values that are stored out of line
    /// may come to a table that has none yet.
    pub grows: bool,
}

/// Why a table can't have REPLICA IDENTITY FULL.
pub const FULL_REFUSED: &str =
    "REPLICA IDENTITY FULL is ruled out, since not all of its columns are \
     published: the publication lists columns, or the table has stored generated ones (from \
     PostgreSQL 18 on).";

/// How a table gets its replica identity.
pub enum Identity<'a> {
    /// Leave it alone: keys are not there yet.
    Leave,
    /// Whatever lets UPDATE and DELETE through, by the user's preference.
    Fit(ReplicaIdentity),
    /// The index of this name, as at the other end of the flow: a subscriber
    /// finds rows by its own identity, which must be part of what is sent. One that
    /// the migration has built there is built here as well.
    Index {
        /// Its name.
        name: &'a str,
        /// What it holds beside the primary key, where the migration has built it.
        columns: Vec<String>,
    },
}

/// What the catalogs of a server say about a table.
struct Facts {
    identity: String,
    identity_columns: Vec<String>,
    identity_index: Option<String>,
    candidate: Option<String>,
    column_list: bool,
    /// It has stored generated columns, where the server publishes none of them as identity.
    generated: bool,
    has_toast: bool,
    fenced: bool,
    detoasting: bool,
    /// A unique index over the primary key and the filter's columns could be built.
    buildable: bool,
}

/// Brings tables into shape; returns for each the index that is its identity now,
/// if one is. One look at the catalogs for all of them; those that are in shape
/// are not touched. Repeatable.
///
/// # Errors
/// 0A000 where a column list rules out the identity that is needed; 55P03 where
/// a table can't be locked; the server's.
pub async fn tables<'a>(
    session: &Connection,
    tables: &'a [Table],
    settings: impl Fn(usize, &'a Table) -> Settings<'a>,
) -> Result<Vec<Option<String>>> {
    let wanted: Vec<Settings<'a>> =
        tables.iter().enumerate().map(|(i, table)| settings(i, table)).collect();
    let facts = facts(session, tables, &wanted).await?;
    let mut indexes = Vec::with_capacity(tables.len());
    for ((table, settings), facts) in tables.iter().zip(&wanted).zip(&facts) {
        indexes.push(one(session, table, settings, facts).await?);
    }
    Ok(indexes)
}

async fn one(
    session: &Connection,
    table: &Table,
    settings: &Settings<'_>,
    facts: &Facts,
) -> Result<Option<String>> {
    let name = table.qualified();
    let mut statements = Vec::new();
    let mut index = facts.identity_index.clone();
    let mut whole_rows = facts.identity == "f";
    match identity_needed(facts, table, settings)? {
        Change::None => {}
        Change::NewIndex(columns) => {
            let built = identity_index::build(session, table, &columns).await?;
            statements
                .push(format!("ALTER TABLE {name} REPLICA IDENTITY USING INDEX {}", ident(&built)));
            index = Some(built);
        }
        Change::Index(wanted) => {
            statements.push(format!(
                "ALTER TABLE {name} REPLICA IDENTITY USING INDEX {}",
                ident(&wanted)
            ));
            index = Some(wanted);
        }
        Change::Full => {
            statements.push(format!("ALTER TABLE {name} REPLICA IDENTITY FULL"));
            whole_rows = true;
            index = None;
        }
    }

    let columns = &settings.filter_columns;
    let has_toast = facts.has_toast || settings.grows;
    if !columns.is_empty() && has_toast && !whole_rows && !facts.detoasting {
        statements.extend(detoast_statements(&name, settings.place, columns));
    }
    if !facts.fenced {
        let parts = settings.place.has_parts_of(table);
        statements.extend(fence_statements(&name, settings.place, parts));
    }
    if !statements.is_empty() {
        locked::batch(session, &name, &statements.join("; ")).await?;
    }
    Ok(index)
}

enum Change {
    None,
    Index(String),
    /// One over the primary key and these columns, which has to be built.
    NewIndex(Vec<String>),
    Full,
}

fn identity_needed(facts: &Facts, table: &Table, settings: &Settings<'_>) -> Result<Change> {
    match &settings.identity {
        Identity::Leave => Ok(Change::None),
        Identity::Index { name, .. } if facts.identity_index.as_deref() == Some(*name) => {
            Ok(Change::None)
        }
        Identity::Index { name, columns } => Ok(match identity_index::is_ours(name) {
            true => Change::NewIndex(columns.clone()),
            false => Change::Index((*name).to_owned()),
        }),
        Identity::Fit(_) if suffices(facts, table, &settings.filter_columns) => Ok(Change::None),
        Identity::Fit(preference) => {
            match (preference, &facts.candidate, settings.filter_columns.as_slice()) {
                (ReplicaIdentity::Full, _, _) if !facts.full_is_refused() => {}
                (_, Some(index), _) => return Ok(Change::Index(index.clone())),
                (preference, None, columns @ [_, ..])
                    if facts.buildable
                        && (*preference == ReplicaIdentity::Index || facts.generated) =>
                {
                    return Ok(Change::NewIndex(columns.to_vec()));
                }
                _ => {}
            }
            if facts.full_is_refused() {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!(
                        "table {} has no replica identity that holds its sharding key and the \
                         columns of its row filter",
                        table.qualified()
                    ),
                )
                .detail(FULL_REFUSED)
                .hint("Create a unique index over published NOT NULL columns that holds them."));
            }
            Ok(Change::Full)
        }
    }
}

/// Statements that have whole rows written when the sharding key changes.
pub(super) fn detoast_statements(name: &str, place: Place<'_>, key: &[String]) -> Vec<String> {
    let changed: Vec<String> = key
        .iter()
        .map(|column| format!("OLD.{0} IS DISTINCT FROM NEW.{0}", ident(column)))
        .collect();
    let mut statements = vec![
        format!(
            "CREATE TRIGGER {DETOAST_TRIGGER} BEFORE UPDATE ON {name} FOR EACH ROW \
             WHEN ({}) EXECUTE FUNCTION reshard.detoast()",
            changed.join(" OR ")
        ),
        format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {DETOAST_TRIGGER}"),
    ];
    if place.has_extension() {
        statements.push(format!(
            "ALTER TRIGGER {DETOAST_TRIGGER} ON {name} DEPENDS ON EXTENSION reshard"
        ));
    }
    statements
}

/// Statements that put the fence on a relation. One that each shard has a part of
/// can't be truncated: the other side would lose the parts of all shards.
pub(super) fn fence_statements(name: &str, place: Place<'_>, parts: bool) -> Vec<String> {
    let parts = if parts { ", 'part'" } else { "" };
    let mut statements = vec![
        format!(
            "CREATE OR REPLACE TRIGGER {FENCE_TRIGGER} \
             BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {name} \
             FOR EACH STATEMENT EXECUTE FUNCTION reshard.fence({}{parts})",
            literal(&place.cluster.name)
        ),
        // Also for sessions with session_replication_role = replica.
        format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {FENCE_TRIGGER}"),
    ];
    if place.has_extension() {
        statements
            .push(format!("ALTER TRIGGER {FENCE_TRIGGER} ON {name} DEPENDS ON EXTENSION reshard"));
    }
    statements
}

/// Puts the fence on the tables of a migration and on those above them, by
/// partitioning or inheritance, wherever it is missing or disabled: a statement's
/// triggers are those of the relation that it names.
///
/// # Errors
/// As [`tables`].
pub async fn fence(session: &Connection, tables: &[Table], place: Place<'_>) -> Result<()> {
    for (name, parts) in unfenced(session, tables, place).await? {
        let statements = fence_statements(&name, place, parts);
        locked::batch(session, &name, &statements.join("; ")).await?;
    }
    Ok(())
}

/// Relations of the migration that have no fence now, and whether each shard has a
/// part of them.
///
/// # Errors
/// The server's.
pub async fn unfenced(
    session: &Connection,
    tables: &[Table],
    place: Place<'_>,
) -> Result<Vec<(String, bool)>> {
    let parts: Vec<bool> = tables.iter().map(|t| place.has_parts_of(t)).collect();
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    let rows = session
        .query(
            "WITH RECURSIVE relation (oid, parts) AS ( \
                 SELECT to_regclass(t.name)::oid, t.parts \
                   FROM unnest($1::text[], $3::boolean[]) AS t (name, parts) \
                 UNION SELECT i.inhparent, r.parts \
                         FROM relation AS r JOIN pg_inherits AS i ON i.inhrelid = r.oid) \
             SELECT format('%I.%I', n.nspname, c.relname), r.parts \
               FROM (SELECT oid, bool_or(parts) AS parts FROM relation GROUP BY oid) AS r \
               JOIN pg_class AS c ON c.oid = r.oid \
               JOIN pg_namespace AS n ON n.oid = c.relnamespace \
              WHERE c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT 1 FROM pg_trigger AS g \
                    WHERE g.tgrelid = c.oid AND g.tgname = $2 AND NOT g.tgisinternal \
                      AND g.tgenabled = 'A')",
            &[&names, &FENCE_TRIGGER, &parts],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let get = |e: tokio_postgres::Error| session.error(&e);
            Ok((row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?))
        })
        .collect()
}

impl Facts {
    /// Whole rows can't be its identity: not all of them is published.
    fn full_is_refused(&self) -> bool {
        self.column_list || self.generated
    }
}

/// Whether the identity lets UPDATE and DELETE through, filter and column list included.
fn suffices(facts: &Facts, table: &Table, filter_columns: &[String]) -> bool {
    if facts.identity == "f" {
        return !facts.full_is_refused();
    }
    let held = &facts.identity_columns;
    let is_sent = held.iter().all(|column| table.columns.contains(column));
    !held.is_empty() && is_sent && filter_columns.iter().all(|column| held.contains(column))
}

/// Each list of columns as a JSON array.
fn json<'a>(lists: impl Iterator<Item = &'a Vec<String>>) -> Result<Vec<String>> {
    Ok(lists.map(serde_json::to_string).collect::<std::result::Result<_, _>>()?)
}

/// What the catalogs say about each of the tables, in their order.
async fn facts(
    session: &Connection,
    tables: &[Table],
    settings: &[Settings<'_>],
) -> Result<Vec<Facts>> {
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    let filters = json(settings.iter().map(|s| &s.filter_columns))?;
    let columns = json(tables.iter().map(|t| &t.columns))?;
    let rows = session
        .query(
            include_str!("settle.sql"),
            &[&names, &filters, &columns, &FENCE_TRIGGER, &DETOAST_TRIGGER],
        )
        .await?;
    let mut known: BTreeMap<i64, Facts> = BTreeMap::new();
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let number: i64 = row.try_get(0).map_err(get)?;
        known.insert(
            number,
            Facts {
                identity: row.try_get(1).map_err(get)?,
                identity_columns: row.try_get(2).map_err(get)?,
                candidate: row.try_get(3).map_err(get)?,
                column_list: row.try_get(4).map_err(get)?,
                has_toast: row.try_get(5).map_err(get)?,
                fenced: row.try_get(6).map_err(get)?,
                detoasting: row.try_get(7).map_err(get)?,
                identity_index: row.try_get(8).map_err(get)?,
                buildable: row.try_get(9).map_err(get)?,
                generated: row.try_get(10).map_err(get)?,
            },
        );
    }
    let of = |(number, table): (i64, &Table)| {
        known.remove(&number).ok_or_else(|| {
            Error::state(format!(
                "table {} does not exist on {}",
                table.qualified(),
                session.label()
            ))
            .hint("Bring the schema there: SELECT reshard_schema_sync('pre', ...);")
        })
    };
    (1..).zip(tables).map(of).collect()
}

/// Takes our triggers off all tables of a server and puts identities back.
/// With `keep_fence` the fence stays.
///
/// # Errors
/// The server's.
pub async fn restore(session: &Connection, tables: &[Table], keep_fence: bool) -> Result<()> {
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    let present = session
        .query(
            "SELECT t.nr::int, c.relreplident::text, \
                    coalesce((SELECT ic.relname::text FROM pg_index AS i \
                                JOIN pg_class AS ic ON ic.oid = i.indexrelid \
                               WHERE i.indrelid = c.oid AND i.indisreplident), '') \
               FROM unnest($1::text[]) WITH ORDINALITY AS t (name, nr) \
               JOIN pg_class AS c ON c.oid = to_regclass(t.name)",
            &[&names],
        )
        .await?;
    for row in present {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let number: i32 = row.try_get(0).map_err(get)?;
        let identity: String = row.try_get(1).map_err(get)?;
        let index: String = row.try_get(2).map_err(get)?;
        let Some(table) = tables.get(number as usize - 1) else { continue };
        if identity == table.identity
            && (identity != "i" || table.identity_index.as_deref() == Some(index.as_str()))
        {
            continue;
        }
        let name = table.qualified();
        let wanted = match (table.identity.as_str(), &table.identity_index) {
            ("f", _) => "FULL".to_owned(),
            ("n", _) => "NOTHING".to_owned(),
            ("i", Some(index)) => format!("USING INDEX {}", ident(index)),
            _ => "DEFAULT".to_owned(),
        };
        locked::batch(session, &name, &format!("ALTER TABLE {name} REPLICA IDENTITY {wanted}"))
            .await?;
    }
    identity_index::drop_all(session, tables).await?;
    let mut triggers = vec![DETOAST_TRIGGER];
    triggers.extend(GUARDS);
    triggers.extend(staying::trigger_names());
    triggers.extend((!keep_fence).then_some(FENCE_TRIGGER));
    drop_triggers(session, &triggers).await
}

/// Drops our triggers of these names from every relation of the server.
async fn drop_triggers(session: &Connection, triggers: &[&str]) -> Result<()> {
    let rows = session
        .query(
            "SELECT format('%I.%I', n.nspname, c.relname), g.tgname::text \
               FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = g.tgrelid \
               JOIN pg_namespace AS n ON n.oid = c.relnamespace \
               JOIN pg_proc AS p ON p.oid = g.tgfoid \
               JOIN pg_namespace AS pn ON pn.oid = p.pronamespace \
              WHERE pn.nspname = 'reshard' AND NOT g.tgisinternal AND g.tgparentid = 0 \
                AND g.tgname = ANY ($1)",
            &[&triggers],
        )
        .await?;
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let name: String = row.try_get(0).map_err(get)?;
        let trigger: String = row.try_get(1).map_err(get)?;
        let sql = format!("DROP TRIGGER IF EXISTS {} ON {name}", ident(&trigger));
        locked::batch(session, &name, &sql).await?;
    }
    Ok(())
}
