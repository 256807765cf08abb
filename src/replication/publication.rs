//! Publications of a migration: one per subscriber on each publisher, whose row
//! filters are the subscriber's placement.
use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{Direction, ShardNo, Side};
use crate::error::{Error, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::Connection;
use crate::state::flow::Flow;
use crate::state::table::Table;

/// Row filters of sharded tables on one publisher: for each table's number, the
/// relation whose hash partitioning is the placement.
pub type Parents = BTreeMap<i32, String>;

/// Those of each publisher: the names hold the numbers of types, which differ.
pub type ParentsOf = BTreeMap<ShardNo, Parents>;

/// The row filters of one publisher.
///
/// # Errors
/// XX000 where it has none.
pub fn of_publisher(parents: &ParentsOf, shard: ShardNo) -> Result<&Parents> {
    parents
        .get(&shard)
        .ok_or_else(|| Error::internal(format!("no placement is known on shard {shard}")))
}

/// Makes the small hash-partitioned tables that placements refer to, one per
/// type of key, on a publisher of that side; as part of the extension where it is.
///
/// A row filter may use `satisfies_hash_partition`, since it is a built-in
/// immutable function, but it asks for a table partitioned by the key's type.
///
/// # Errors
/// The server's.
pub async fn placement_parents(
    session: &Connection,
    tables: &[Table],
    side: Side,
) -> Result<Parents> {
    let mut parents = Parents::new();
    let mut made = BTreeSet::new();
    let keyed: Vec<(&Table, &str)> =
        tables.iter().filter_map(|t| Some((t, t.key_column.as_deref()?))).collect();
    let names: Vec<String> = keyed.iter().map(|(t, _)| t.qualified()).collect();
    let columns: Vec<&str> = keyed.iter().map(|(_, key)| *key).collect();
    let rows = session
        .query(
            "SELECT t.nr, format('placement_%s_%s', a.atttypid, a.attcollation), \
                    format_type(a.atttypid, NULL), \
                    (SELECT format('COLLATE %I.%I', n.nspname, l.collname) FROM pg_collation AS l \
                       JOIN pg_namespace AS n ON n.oid = l.collnamespace \
                      WHERE l.oid = a.attcollation) \
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (name, key, nr) \
               JOIN pg_attribute AS a ON a.attrelid = to_regclass(t.name) AND a.attname = t.key \
              ORDER BY t.nr",
            &[&names, &columns],
        )
        .await?;
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let number: i64 = row.try_get(0).map_err(get)?;
        let name: String = row.try_get(1).map_err(get)?;
        let type_name: String = row.try_get(2).map_err(get)?;
        let collation: Option<String> = row.try_get(3).map_err(get)?;
        let parent = format!("reshard.{}", ident(&name));
        if made.insert(name) {
            make_parent(session, &parent, &type_name, collation.as_deref(), side).await?;
        }
        if let Some((table, _)) = keyed.get(number as usize - 1) {
            parents.insert(table.table_id, parent);
        }
    }
    Ok(parents)
}

async fn make_parent(
    session: &Connection,
    parent: &str,
    type_name: &str,
    collation: Option<&str>,
    side: Side,
) -> Result<()> {
    let exists: bool = session.value("SELECT to_regclass($1) IS NOT NULL", &[&parent]).await?;
    if exists {
        return Ok(());
    }
    let belongs = match side {
        Side::Source => format!("ALTER EXTENSION reshard ADD TABLE {parent};"),
        Side::Destination => String::new(),
    };
    session
        .batch(&format!(
            "BEGIN; CREATE TABLE {parent} (key {type_name} {}) PARTITION BY HASH (key); \
             COMMENT ON TABLE {parent} IS 'placement by hash of {}; row filters refer to it'; \
             {belongs} COMMIT",
            collation.unwrap_or(""),
            type_name.replace('\'', "''"),
        ))
        .await
}

/// Makes the publication of one flow.
///
/// `parents` is empty where this direction's rows go to one shard alone.
///
/// # Errors
/// The server's.
pub async fn create(
    session: &Connection,
    flow: &Flow,
    tables: &[Table],
    parents: &Parents,
    subscriber: ShardNo,
    subscribers: u32,
) -> Result<()> {
    let exists: bool = session
        .value(
            "SELECT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = $1)",
            &[&flow.publication_name],
        )
        .await?;
    if exists {
        return Ok(());
    }
    let sql = statement(flow, tables, parents, subscriber, subscribers)?;
    session.batch(&sql).await
}

/// The statement that makes a publication.
fn statement(
    flow: &Flow,
    tables: &[Table],
    parents: &Parents,
    subscriber: ShardNo,
    subscribers: u32,
) -> Result<String> {
    let mut members =
        vec![format!("TABLE reshard.marker WHERE (id = {})", literal(&flow.marker_id()))];
    if flow.direction == Direction::Forward {
        members.push(format!("TABLE reshard.ddl WHERE (task_id = {})", flow.task_id));
    }
    for table in tables {
        let mut conditions = Vec::new();
        if let (Some(key), true) = (&table.key_column, subscribers > 1) {
            let parent = parents.get(&table.table_id).ok_or_else(|| {
                Error::internal(format!("no placement is known for table {}", table.qualified()))
            })?;
            conditions.push(format!(
                "pg_catalog.satisfies_hash_partition({}::pg_catalog.regclass, {subscribers}, \
                 {subscriber}, {})",
                literal(parent),
                ident(key)
            ));
        }
        if let Some(filter) = &table.row_filter {
            conditions.push(format!("({filter})"));
        }
        let filter = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE ({})", conditions.join(" AND ")),
        };
        members.push(format!("TABLE ONLY {}{}{filter}", table.qualified(), column_list(table)));
    }
    Ok(format!(
        "CREATE PUBLICATION {} FOR {} \
         WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)",
        ident(&flow.publication_name),
        members.join(", ")
    ))
}

/// The list of columns, where the user's publication has one.
fn column_list(table: &Table) -> String {
    if !table.column_list {
        return String::new();
    }
    let columns: Vec<String> = table.columns.iter().map(|c| ident(c)).collect();
    format!(" ({})", columns.join(", "))
}

/// Takes tables out of a publication that are copied in a later wave.
///
/// # Errors
/// The server's.
pub async fn drop_tables(session: &Connection, publication: &str, tables: &[&Table]) -> Result<()> {
    let rows = session
        .query(
            "SELECT schemaname::text, tablename::text FROM pg_publication_tables \
              WHERE pubname = $1",
            &[&publication],
        )
        .await?;
    let mut members = BTreeSet::new();
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let member: (String, String) = (row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?);
        members.insert(member);
    }
    let gone: Vec<String> = tables
        .iter()
        .filter(|t| members.contains(&(t.schema_name.clone(), t.table_name.clone())))
        .map(|t| format!("ONLY {}", t.qualified()))
        .collect();
    for chunk in gone.chunks(100) {
        session
            .batch(&format!(
                "ALTER PUBLICATION {} DROP TABLE {}",
                ident(publication),
                chunk.join(", ")
            ))
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn table(key: Option<&str>, filter: Option<&str>) -> Table {
        Table {
            table_id: 1,
            wave: Some(1),
            schema_name: "s".into(),
            table_name: "T".into(),
            columns: vec!["a".into()],
            column_list: false,
            key_column: key.map(Into::into),
            source_key: None,
            row_filter: filter.map(Into::into),
            identity: "d".into(),
            identity_index: None,
            bytes_total: 0,
            status: "pending".into(),
        }
    }

    fn flow() -> Flow {
        Flow::new("abc", 1, Direction::Forward, 1, ShardNo(0), ShardNo(2))
    }

    #[test]
    fn a_sharded_table_is_filtered_by_placement_and_user() {
        let parents = Parents::from([(1, "reshard.\"p\"".to_owned())]);
        let sql = statement(&flow(), &[table(Some("k"), Some("a > 1"))], &parents, ShardNo(2), 4)
            .unwrap();
        assert!(sql.contains(
            "TABLE ONLY \"s\".\"T\" WHERE (pg_catalog.satisfies_hash_partition('reshard.\"p\"'\
             ::pg_catalog.regclass, 4, 2, \"k\") AND (a > 1))"
        ));
    }

    #[test]
    fn an_omni_table_is_not_filtered() {
        let sql = statement(&flow(), &[table(None, None)], &Parents::new(), ShardNo(2), 4).unwrap();
        assert!(sql.contains("TABLE ONLY \"s\".\"T\" WITH"));
    }

    #[test]
    fn a_missing_placement_is_an_error() {
        assert!(
            statement(&flow(), &[table(Some("k"), None)], &Parents::new(), ShardNo(0), 2).is_err()
        );
    }
}
