//! Declaring clusters, shards and sharding keys.
use pgrx::prelude::*;
use pgrx::PgRelation;

use crate::api::admin;
use crate::cluster::{Method, ShardingRule};
use crate::error::{Error, Kind, Result};
use crate::pg::db::{self, Arg};
use crate::pg::report::or_raise;
use crate::pg::runtime;
use crate::remote::quote::literal;
use crate::remote::{connect, Conninfo, Endpoint, Purpose};
use crate::state::{cluster, mapping, task};

/// Declares a shard and connects to it at once.
///
/// # Errors
/// 22023 for a bad argument, 42710 where it is declared otherwise, 08001 or
/// 28xxx where it can't be reached with that connection string.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_add_shard(cluster: &str, shard: i32, conninfo: &str) {
    or_raise(add_shard(cluster, shard, conninfo));
}

fn add_shard(name: &str, shard: i32, conninfo: &str) -> Result<()> {
    admin::require()?;
    if name.trim().is_empty() {
        return Err(Error::argument("cluster name must not be empty"));
    }
    let number = u32::try_from(shard).map_err(|_| {
        Error::argument(format!("shard number {shard} is negative"))
            .hint("Shards are numbered from 0.")
    })?;
    let endpoint =
        Endpoint { cluster: name.to_owned(), shard: number, conninfo: Conninfo::parse(conninfo)? };
    refuse_while_used(name)?;
    runtime::run(probe(&endpoint))?;
    if !cluster::declare(&endpoint)? {
        notice!("{endpoint} is declared so already");
    }
    Ok(())
}

/// Connects, and looks whether it is a database that can be used at all.
async fn probe(endpoint: &Endpoint) -> Result<()> {
    let session = connect(endpoint, Purpose::Preflight).await?;
    let in_recovery: bool = session.value("SELECT pg_is_in_recovery()", &[]).await?;
    if in_recovery {
        return Err(Error::state(format!("{endpoint} is a standby"))
            .hint("Give the connection string of the primary."));
    }
    let version: i32 =
        session.value("SELECT current_setting('server_version_num')::int", &[]).await?;
    if version < 150_000 {
        return Err(Error::new(
            Kind::Unsupported,
            format!("{endpoint} runs an unsupported version"),
        )
        .detail(format!(
            "Its server_version_num is {version}; row filters came with PostgreSQL 15."
        ))
        .hint("Upgrade that server to PostgreSQL 15 or later."));
    }
    Ok(())
}

/// No unfinished migration uses a cluster.
///
/// # Errors
/// 55000 where one does.
pub(super) fn refuse_while_used(name: &str) -> Result<()> {
    let used =
        task::live_migrations()?.into_iter().find(|t| t.source == name || t.destination == name);
    match used {
        None => Ok(()),
        Some(task) => Err(Error::state(format!("cluster \"{name}\" is used by task {}", task.id))
            .hint(format!("Complete or cancel it first: SELECT reshard_cancel({});", task.id))),
    }
}

/// Forgets a shard. Touches nothing on it.
///
/// # Errors
/// 55000 while a migration uses its cluster.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_drop_shard(cluster: &str, shard: i32) {
    or_raise(drop_shard(cluster, shard));
}

fn drop_shard(name: &str, shard: i32) -> Result<()> {
    admin::require()?;
    refuse_while_used(name)?;
    let dropped = match u32::try_from(shard) {
        Ok(number) => cluster::drop(name, number)?,
        Err(_) => false,
    };
    if !dropped {
        notice!("shard {shard} of cluster \"{name}\" is not declared");
    }
    Ok(())
}

/// Says by which column tables are spread over a cluster's shards: all tables
/// with that column, or with `relation` that table alone; and how: by `hash`, or by
/// `list` or `range` as its keys are mapped.
///
/// # Errors
/// 0A000 for a method that is not supported, 42710 where it is declared by another one, 42703 where the table has no such
/// column, 55000 while a migration uses the cluster.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_set_sharding_key(
    cluster: &str,
    column_name: &str,
    method: default!(&str, "'hash'"),
    relation: default!(Option<PgRelation>, "NULL"),
) {
    let relation = relation.map(|r| qualified(&r));
    or_raise(set_sharding_key(cluster, column_name, method, relation));
}

fn set_sharding_key(
    name: &str,
    column: &str,
    method: &str,
    relation: Option<(String, String)>,
) -> Result<()> {
    admin::require()?;
    let method = Method::parse(method).ok_or_else(|| {
        Error::new(Kind::Unsupported, format!("sharding method \"{method}\" is not supported"))
            .hint("The methods are hash (the same placement as PARTITION BY HASH), list and range.")
    })?;
    refuse_while_used(name)?;
    match &relation {
        Some((schema, table)) => require_column(schema, table, column)?,
        None if column.contains(',') && !is_column(column)? => {
            return Err(Error::new(
                Kind::Unsupported,
                format!("sharding key \"{column}\" of several columns is not supported"),
            )
            .detail("No table of this database has a column of that name.")
            .hint("A sharding key is one column."));
        }
        None if !is_column(column)? => {
            notice!("no table of this database has a column \"{column}\" so far");
        }
        None => {}
    }
    let (schema_name, table_name) = relation.unzip();
    let column_name = column.to_owned();
    if !cluster::add_rule(name, &ShardingRule { schema_name, table_name, column_name, method })? {
        notice!("cluster \"{name}\" has that sharding key already");
    }
    Ok(())
}

/// Takes back a sharding key: tables that no other one covers go whole to every
/// shard. `relation` as it was declared. Keys that were mapped of the column are forgotten
/// where no other sharding key uses them.
///
/// # Errors
/// 55000 while a migration uses the cluster.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_drop_sharding_key(
    cluster: &str,
    column_name: &str,
    relation: default!(Option<PgRelation>, "NULL"),
) {
    let relation = relation.map(|r| qualified(&r));
    or_raise(drop_sharding_key(cluster, column_name, relation));
}

fn drop_sharding_key(name: &str, column: &str, relation: Option<(String, String)>) -> Result<()> {
    admin::require()?;
    refuse_while_used(name)?;
    let relation = relation.as_ref().map(|(schema, table)| (schema.as_str(), table.as_str()));
    if !cluster::drop_rule(name, column, relation)? {
        notice!("cluster \"{name}\" has no such sharding key");
    }
    let mappings = mapping::delete_unused(name)?;
    if mappings > 0 {
        notice!("{mappings} mappings of its keys to shards are forgotten");
    }
    Ok(())
}

/// Schema and name.
fn qualified(relation: &PgRelation) -> (String, String) {
    (relation.namespace().to_owned(), relation.name().to_owned())
}

/// Whether a table of the user's has a column of that name.
fn is_column(name: &str) -> Result<bool> {
    db::truth(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a \
           JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') \
          WHERE a.attname = $1 AND a.attnum > 0 AND NOT a.attisdropped AND c.oid >= 16384 \
            AND c.relnamespace <> 'reshard'::pg_catalog.regnamespace)",
        &[Arg::Text(name)],
    )
}

fn require_column(schema: &str, table: &str, column: &str) -> Result<()> {
    let exists = db::truth(
        "SELECT true FROM pg_catalog.pg_attribute AS a \
           JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid \
           JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
          WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = $3 AND a.attnum > 0 \
            AND NOT a.attisdropped",
        &[Arg::Text(schema), Arg::Text(table), Arg::Text(column)],
    )?;
    match exists {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Server("42703".to_owned()),
            format!("column \"{column}\" of table \"{schema}\".\"{table}\" does not exist"),
        )
        .hint(format!(
            "See the columns: SELECT attname FROM pg_attribute WHERE attrelid = {}::regclass;",
            literal(&crate::remote::quote::qualified(schema, table))
        ))),
    }
}
