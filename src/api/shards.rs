//! Declaring clusters, shards and sharding keys.
use pgrx::prelude::*;
use pgrx::PgRelation;

use crate::api::argument::given;
use crate::api::{admin, redeclare};
use crate::cluster::{rule, Method, ShardingRule};
use crate::error::{Error, Kind, Result};
use crate::pg::db::{self, Arg};
use crate::pg::report::or_raise;
use crate::pg::runtime;
use crate::remote::quote::literal;
use crate::remote::{connect, identity, Conninfo, Endpoint, Purpose};
use crate::state::task::{self, Task};
use crate::state::{cluster, mapping};

/// Declares a shard and connects to it at once. While a migration uses the cluster, one that
/// is declared already gets another connection string to the same database.
///
/// # Errors
/// 22023 for a bad argument, 42710 where it is declared otherwise, 55000 where a migration
/// uses it and it would be another database, 08001 or 28xxx where it can't be reached with
/// that connection string.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_add_shard(cluster: Option<&str>, shard: Option<i32>, conninfo: Option<&str>) {
    let (cluster, shard) = (given(cluster, "cluster"), given(shard, "shard"));
    or_raise(add_shard(cluster, shard, given(conninfo, "conninfo")));
}

fn add_shard(name: &str, shard: i32, conninfo: &str) -> Result<()> {
    admin::require()?;
    require_name(name)?;
    let number = u32::try_from(shard).map_err(|_| {
        Error::argument(format!("shard number {shard} is negative"))
            .hint("Shards are numbered from 0.")
    })?;
    let endpoint =
        Endpoint { cluster: name.to_owned(), shard: number, conninfo: Conninfo::parse(conninfo)? };
    if let Some((user, others)) = users_of(name)?.split_first() {
        return redeclare::redeclare(&endpoint, user, others);
    }
    let found = runtime::run(probe(&endpoint))?;
    if !cluster::declare(&endpoint, &found.database)? {
        notice!("{endpoint} is declared so already");
    }
    Ok(())
}

/// A cluster that is declared has a name.
///
/// # Errors
/// 22023 where it is empty.
pub(super) fn require_name(cluster: &str) -> Result<()> {
    match cluster.trim() {
        "" => Err(Error::argument("cluster name must not be empty")),
        _ => Ok(()),
    }
}

/// Where a connection string has led to.
pub(super) struct Found {
    /// The server, as long as it runs.
    pub server: String,
    /// The database.
    pub database: String,
}

/// Connects, and looks whether it is a database that can be used at all.
///
/// # Errors
/// 55000 for a standby, 0A000 for a server that is too old; the server's.
pub(super) async fn probe(endpoint: &Endpoint) -> Result<Found> {
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
    Ok(Found {
        server: session.value(identity::SERVER, &[]).await?,
        database: session.value(identity::DATABASE, &[]).await?,
    })
}

/// The unfinished migrations that use a cluster.
///
/// # Errors
/// SPI's.
fn users_of(name: &str) -> Result<Vec<Task>> {
    let mut tasks = task::live_migrations()?;
    tasks.retain(|t| t.source == name || t.destination == name);
    Ok(tasks)
}

/// No unfinished migration uses a cluster.
///
/// # Errors
/// 55000 where one does.
pub(super) fn refuse_while_used(name: &str) -> Result<()> {
    match users_of(name)?.first() {
        None => Ok(()),
        Some(task) => Err(in_use(name, task)),
    }
}

/// The error of a cluster that a migration uses.
pub(super) fn in_use(name: &str, task: &Task) -> Error {
    Error::state(format!("cluster \"{name}\" is used by task {}", task.id))
        .hint(format!("Complete or cancel it first: SELECT reshard_cancel({});", task.id))
}

/// Forgets a shard. Touches nothing on it. With the last one go the cluster's sharding keys.
///
/// # Errors
/// 55000 while a migration uses its cluster.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_drop_shard(cluster: Option<&str>, shard: Option<i32>) {
    or_raise(drop_shard(given(cluster, "cluster"), given(shard, "shard")));
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
    } else if cluster::endpoints(name)?.is_empty() {
        forget_rules(name)?;
    }
    Ok(())
}

/// A cluster without shards has no sharding keys: one that is declared anew under its name
/// must not find those of old.
fn forget_rules(name: &str) -> Result<()> {
    let (rules, mappings) = cluster::drop_rules(name)?;
    if rules + mappings > 0 {
        notice!(
            "cluster \"{name}\" has no shards any more: {rules} sharding keys and {mappings} \
             mappings of keys to shards are forgotten"
        );
    }
    Ok(())
}

/// Says by which column tables are spread over a cluster's shards: all tables
/// with that column, or with `relation` that table alone; and how: by `hash`, or by
/// `list` or `range` as its keys are mapped.
///
/// # Errors
/// 0A000 for a method that is not supported, 42710 where it is declared by another one,
/// 42703 where the table has no such column, 55000 while a migration uses the cluster.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_set_sharding_key(
    cluster: Option<&str>,
    column_name: Option<&str>,
    method: default!(Option<&str>, "'hash'"),
    relation: default!(Option<PgRelation>, "NULL"),
) {
    let (cluster, method) = (given(cluster, "cluster"), given(method, "method"));
    let relation = relation.map(|r| qualified(&r));
    or_raise(
        one_column(given(column_name, "column_name"))
            .and_then(|columns| set_sharding_key(cluster, columns, method, relation)),
    );
}

/// The same by several columns, in the order in which they are hashed: all tables with
/// all of these columns, or with `relation` that table alone.
///
/// # Errors
/// As above; 22023 for a list that is empty or names a column twice, 54011 for too many
/// columns, 0A000 for several columns by list or range.
#[pg_extern(name = "reshard_set_sharding_key", security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_set_sharding_key_columns(
    cluster: Option<&str>,
    column_names: Option<Vec<Option<String>>>,
    method: default!(Option<&str>, "'hash'"),
    relation: default!(Option<PgRelation>, "NULL"),
) {
    let (cluster, method) = (given(cluster, "cluster"), given(method, "method"));
    let relation = relation.map(|r| qualified(&r));
    or_raise(
        several_columns(given(column_names, "column_names"))
            .and_then(|columns| set_sharding_key(cluster, columns, method, relation)),
    );
}

/// A key of one column; a list in one text is taken for what it is.
fn one_column(column: &str) -> Result<Vec<String>> {
    if column.contains(',') && !is_column(column)? {
        let columns: Vec<&str> = column.split(',').map(str::trim).collect();
        return Err(Error::new(
            Kind::Unsupported,
            format!("\"{column}\" is no column, and several columns are not given in one text"),
        )
        .detail("No table of this database has a column of that name.")
        .hint(format!(
            "Give several columns as an array: ARRAY[{}].",
            columns.iter().map(|c| literal(c)).collect::<Vec<_>>().join(", ")
        )));
    }
    Ok(vec![column.to_owned()])
}

/// The most columns that `PARTITION BY` takes (`PARTITION_MAX_KEYS` of
/// src/include/pg_config_manual.h).
const MOST_COLUMNS: usize = 32;

fn several_columns(columns: Vec<Option<String>>) -> Result<Vec<String>> {
    let Some(columns) = columns.into_iter().collect::<Option<Vec<String>>>() else {
        return Err(Error::argument("name of a column must not be null"));
    };
    if columns.is_empty() {
        return Err(Error::argument("a sharding key has at least one column").hint(
            "Name its columns, in the order in which they are hashed: ARRAY['...', '...'].",
        ));
    }
    if columns.len() > MOST_COLUMNS {
        return Err(Error::new(
            Kind::Server("54011".to_owned()),
            format!("a sharding key of {} columns is not possible", columns.len()),
        )
        .detail(format!("PARTITION BY HASH, which it is, takes {MOST_COLUMNS} at most.")));
    }
    let twice = columns.iter().enumerate().find(|(i, c)| columns[..*i].contains(c));
    if let Some((_, column)) = twice {
        return Err(Error::argument(format!("column \"{column}\" is named twice")));
    }
    Ok(columns)
}

fn set_sharding_key(
    name: &str,
    columns: Vec<String>,
    method: &str,
    relation: Option<(String, String)>,
) -> Result<()> {
    admin::require()?;
    let method = Method::parse(method).ok_or_else(|| {
        Error::new(Kind::Unsupported, format!("sharding method \"{method}\" is not supported"))
            .hint("The methods are hash (the same placement as PARTITION BY HASH), list and range.")
    })?;
    refuse_while_used(name)?;
    if method.is_mapped() && columns.len() > 1 {
        return Err(Error::new(
            Kind::Unsupported,
            format!("a sharding key of several columns by {} is not supported", method.as_str()),
        )
        .detail("Keys are mapped to shards by the values of one column.")
        .hint("Choose one of the columns, or method hash."));
    }
    for column in &columns {
        match &relation {
            Some((schema, table)) => require_column(schema, table, column)?,
            None if !is_column(column)? => {
                notice!("no table of this database has a column \"{column}\" so far");
            }
            None => {}
        }
    }
    let (schema_name, table_name) = relation.unzip();
    let rule = ShardingRule { schema_name, table_name, column_names: columns, method };
    if !cluster::add_rule(name, &rule)? {
        notice!("cluster \"{name}\" has that sharding key already");
    }
    if let (None, Some(table)) = (&rule.table_name, cluster::covered_before(name, &rule)?) {
        notice!(
            "sharding key {} does not hold for table {table}, among others maybe: one of as many \
             columns was declared first",
            rule::shown(&rule.column_names)
        );
    }
    Ok(())
}

/// Takes back a sharding key: tables that no other one covers go whole to every
/// shard. `relation` as it was declared; `relation_name` is the name of a table that may be
/// gone, with its schema. Keys that were mapped of the column are forgotten where no other
/// sharding key uses them.
///
/// # Errors
/// 22023 for a name without schema, or both ways to name a table; 55000 while a migration
/// uses the cluster.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_drop_sharding_key(
    cluster: Option<&str>,
    column_name: Option<&str>,
    relation: default!(Option<PgRelation>, "NULL"),
    relation_name: default!(Option<&str>, "NULL"),
) {
    let cluster = given(cluster, "cluster");
    let columns = [given(column_name, "column_name").to_owned()];
    or_raise(
        one_table(relation, relation_name)
            .and_then(|table| drop_sharding_key(cluster, &columns, table)),
    );
}

/// The same of several columns.
///
/// # Errors
/// As above; 22023 for a list that is none of columns.
#[pg_extern(name = "reshard_drop_sharding_key", security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_drop_sharding_key_columns(
    cluster: Option<&str>,
    column_names: Option<Vec<Option<String>>>,
    relation: default!(Option<PgRelation>, "NULL"),
    relation_name: default!(Option<&str>, "NULL"),
) {
    let cluster = given(cluster, "cluster");
    let columns = given(column_names, "column_names");
    or_raise(several_columns(columns).and_then(|columns| {
        let table = one_table(relation, relation_name)?;
        drop_sharding_key(cluster, &columns, table)
    }));
}

/// The table that is meant, if any: one that is there, or one by its name alone.
fn one_table(relation: Option<PgRelation>, name: Option<&str>) -> Result<Option<(String, String)>> {
    match (relation, name) {
        (Some(_), Some(_)) => Err(Error::argument("relation and relation_name are both given")
            .hint("Name a table in one way: relation_name is for one that is gone.")),
        (Some(relation), None) => Ok(Some(qualified(&relation))),
        (None, Some(name)) => with_schema(name).map(Some),
        (None, None) => Ok(None),
    }
}

/// Schema and name of a table in one text.
fn with_schema(name: &str) -> Result<(String, String)> {
    let parts: Vec<String> = db::rows(
        "SELECT pg_catalog.to_jsonb(p.part) \
           FROM pg_catalog.unnest(pg_catalog.parse_ident($1)) WITH ORDINALITY AS p (part, nr) \
          ORDER BY p.nr",
        &[Arg::Text(name)],
    )?;
    match <[String; 2]>::try_from(parts) {
        Ok([schema, table]) => Ok((schema, table)),
        Err(_) => Err(Error::argument(format!("relation_name \"{name}\" names no schema"))
            .hint("Give it as schema.table; reshard.clusters shows it so.")),
    }
}

fn drop_sharding_key(
    name: &str,
    columns: &[String],
    relation: Option<(String, String)>,
) -> Result<()> {
    admin::require()?;
    refuse_while_used(name)?;
    let relation = relation.as_ref().map(|(schema, table)| (schema.as_str(), table.as_str()));
    if !cluster::drop_rule(name, columns, relation)? {
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
