//! Publications of a migration: one per subscriber on each publisher, whose row
//! filters are the subscriber's placement.
use std::collections::BTreeSet;

use crate::cluster::{Direction, ShardNo};
use crate::error::Result;
use crate::remote::quote::{ident, literal};
use crate::remote::Connection;
use crate::replication::filter::Filters;
use crate::state::flow::Flow;
use crate::state::table::Table;

/// Makes the publication of one flow, or adds the tables that it lacks.
///
/// `filters` is empty where this direction's rows go to one shard alone.
///
/// # Errors
/// The server's.
pub async fn create(
    session: &Connection,
    flow: &Flow,
    tables: &[Table],
    filters: &Filters,
    subscriber: ShardNo,
) -> Result<()> {
    let exists: bool = session
        .value(
            "SELECT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = $1)",
            &[&flow.publication_name],
        )
        .await?;
    if !exists {
        return session.batch(&statement(flow, tables, filters, subscriber)).await;
    }
    let present = members(session, &flow.publication_name).await?;
    for table in tables {
        if present.contains(&(table.schema_name.clone(), table.table_name.clone())) {
            continue;
        }
        let (name, member) =
            (ident(&flow.publication_name), member(flow, table, filters, subscriber));
        session.batch(&format!("ALTER PUBLICATION {name} ADD {member}")).await?;
    }
    Ok(())
}

/// The statement that makes a publication.
fn statement(flow: &Flow, tables: &[Table], filters: &Filters, subscriber: ShardNo) -> String {
    let mut members =
        vec![format!("TABLE reshard.marker WHERE (id = {})", literal(&flow.marker_id()))];
    if flow.direction == Direction::Forward {
        members.push(format!("TABLE reshard.ddl WHERE (task_id = {})", flow.task_id));
    }
    members.extend(tables.iter().map(|table| member(flow, table, filters, subscriber)));
    format!(
        "CREATE PUBLICATION {} FOR {} \
         WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)",
        ident(&flow.publication_name),
        members.join(", ")
    )
}

/// A table in a publication, with the rows of one subscriber.
///
/// What was written on the destination comes back also where the user's filter would keep
/// it from going there: the source has such rows as well.
fn member(flow: &Flow, table: &Table, filters: &Filters, subscriber: ShardNo) -> String {
    let placed = filters.get(&table.table_id).map(|filter| filter.condition(subscriber));
    let users = table.row_filter.clone().filter(|_| flow.direction == Direction::Forward);
    member_where(table, placed.into_iter().chain(users).collect())
}

/// A table in a publication, with the rows that meet all of these conditions.
pub(super) fn member_where(table: &Table, conditions: Vec<String>) -> String {
    let filter = match conditions.is_empty() {
        true => String::new(),
        false => format!(" WHERE (({}))", conditions.join(") AND (")),
    };
    format!("TABLE ONLY {}{}{filter}", table.qualified(), column_list(table))
}

/// The list of columns, where the user's publication has one.
fn column_list(table: &Table) -> String {
    if !table.column_list {
        return String::new();
    }
    let columns: Vec<String> = table.columns.iter().map(|c| ident(c)).collect();
    format!(" ({})", columns.join(", "))
}

/// Schemas and names of the tables in a publication.
async fn members(session: &Connection, publication: &str) -> Result<BTreeSet<(String, String)>> {
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
    Ok(members)
}

/// Takes tables out of a publication that are copied in a later wave.
///
/// # Errors
/// The server's.
pub async fn drop_tables(session: &Connection, publication: &str, tables: &[&Table]) -> Result<()> {
    let members = members(session, publication).await?;
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
    use super::*;
    use crate::replication::filter::Filter;

    fn table(filter: Option<&str>) -> Table {
        Table {
            table_id: 1,
            wave: Some(1),
            schema_name: "s".into(),
            table_name: "T".into(),
            columns: vec!["a".into()],
            column_list: false,
            key_columns: None,
            key_method: None,
            source_key: None,
            source_method: None,
            source_shard: None,
            row_filter: filter.map(Into::into),
            filter_columns: Vec::new(),
            identity: "d".into(),
            identity_index: None,
            bytes_total: 0,
            status: "pending".into(),
        }
    }

    fn flow(direction: Direction) -> Flow {
        Flow::new("abc", 1, direction, 1, ShardNo(0), ShardNo(2))
    }

    #[test]
    fn a_sharded_table_is_filtered_by_placement_and_user() {
        let filter =
            Filter::Hash { columns: vec!["k".into()], parent: "reshard.\"p\"".into(), shards: 4 };
        let filters = Filters::from([(1, filter)]);
        let of =
            |direction| statement(&flow(direction), &[table(Some("a > 1"))], &filters, ShardNo(2));
        let placed = "TABLE ONLY \"s\".\"T\" WHERE ((pg_catalog.satisfies_hash_partition(\
                      'reshard.\"p\"'::pg_catalog.regclass, 4, 2, \"k\"))";
        assert!(of(Direction::Forward).contains(&format!("{placed} AND (a > 1))")));
        // On the way back all rows go that are placed there.
        assert!(of(Direction::Reverse).contains(&format!("{placed})")));
    }

    #[test]
    fn an_omni_table_is_not_filtered() {
        let sql = statement(&flow(Direction::Forward), &[table(None)], &Filters::new(), ShardNo(2));
        assert!(sql.contains("TABLE ONLY \"s\".\"T\" WITH"));
    }
}
