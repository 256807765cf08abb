//! Drops what a task's statements made on a shard, for a cancelled migration.
use crate::error::Result;
use crate::pg::xact::transaction;
use crate::remote::quote::{ident, qualified};
use crate::remote::{connect, Connection, Endpoint, Purpose};
use crate::state::schema::{self, Statement};

/// Drops all objects that statements of this task made on one shard, the latest
/// first. What was there before the task is left alone; what is gone is no error.
///
/// # Errors
/// The shard's.
pub async fn drop_created(task: i64, shard: &Endpoint) -> Result<()> {
    let made = transaction(|| schema::made(task, shard.shard))?;
    if made.is_empty() {
        return Ok(());
    }
    let session = connect(shard, Purpose::Schema).await?;
    session.batch("SET client_min_messages = error").await?;
    for statement in made.iter().rev() {
        if let Some(sql) = drop_statement(statement) {
            session.batch(&sql).await?;
        } else if is_routine(statement) {
            drop_routines(&session, statement).await?;
        }
    }
    Ok(())
}

fn is_routine(statement: &Statement) -> bool {
    matches!(statement.kind.as_str(), "function" | "procedure" | "aggregate")
}

/// The statement that takes back one that made a relation, type or schema.
fn drop_statement(statement: &Statement) -> Option<String> {
    let name = statement.object_name.as_deref()?;
    let table =
        || Some(qualified(statement.table_schema.as_deref()?, statement.table_name.as_deref()?));
    let kind = match statement.kind.as_str() {
        "primary_key" | "unique" | "exclusion" | "foreign_key" => {
            return Some(format!(
                "ALTER TABLE IF EXISTS {} DROP CONSTRAINT IF EXISTS {} CASCADE",
                table()?,
                ident(name)
            ));
        }
        "index" => "INDEX",
        "schema" => return Some(format!("DROP SCHEMA IF EXISTS {} CASCADE", ident(name))),
        "extension" => return Some(format!("DROP EXTENSION IF EXISTS {} CASCADE", ident(name))),
        "table" => "TABLE",
        "foreign_table" => "FOREIGN TABLE",
        "view" => "VIEW",
        "materialized_view" => "MATERIALIZED VIEW",
        "sequence" => "SEQUENCE",
        "type" => "TYPE",
        "domain" => "DOMAIN",
        "collation" => "COLLATION",
        "statistics" => "STATISTICS",
        "text_search_configuration" => "TEXT SEARCH CONFIGURATION",
        "text_search_dictionary" => "TEXT SEARCH DICTIONARY",
        "text_search_parser" => "TEXT SEARCH PARSER",
        "text_search_template" => "TEXT SEARCH TEMPLATE",
        _ => return None,
    };
    let schema = statement.schema_name.as_deref()?;
    Some(format!("DROP {kind} IF EXISTS {} CASCADE", qualified(schema, name)))
}

async fn drop_routines(session: &Connection, statement: &Statement) -> Result<()> {
    let rows = session
        .query(
            "SELECT p.oid::regprocedure::text FROM pg_proc AS p \
               JOIN pg_namespace AS n ON n.oid = p.pronamespace \
              WHERE n.nspname = $1 AND p.proname = $2 AND NOT EXISTS (SELECT 1 FROM pg_depend AS d \
                    WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')",
            &[&statement.schema_name, &statement.object_name],
        )
        .await?;
    for row in rows {
        let routine: String = row.try_get(0).map_err(|e| session.error(&e))?;
        session.batch(&format!("DROP ROUTINE IF EXISTS {routine} CASCADE")).await?;
    }
    Ok(())
}
