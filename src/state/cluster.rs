//! Declared clusters: FOREIGN SERVERs of the wrapper `reshard`, their passwords
//! in user mappings, their sharding keys in `reshard.sharding_rule`, the keys that
//! are mapped to shards in [`super::mapping`].
use serde::Deserialize;

use crate::cluster::{rule, Cluster, ShardingRule};
use crate::error::{Error, Kind, Result};
use crate::pg::db::{self, Arg};
use crate::remote::quote::{ident, literal};
use crate::remote::{Conninfo, Endpoint};
use crate::state::mapping;
use crate::state::task::Task;

#[derive(Deserialize)]
struct Declared {
    shard: u32,
    conninfo: String,
    password: Option<String>,
}

/// The shards of a cluster, passwords included, and the keys that are mapped to them.
///
/// # Errors
/// 42704 where no shard of that cluster is declared, 55000 where one is missing.
pub fn load(name: &str) -> Result<Cluster> {
    Ok(Cluster::new(name, endpoints(name)?)?.with_maps(mapping::maps(name)?))
}

/// Source and destination of a task, with what it knows of shards that are in both.
///
/// # Errors
/// As [`load`].
pub fn of_task(task: &Task) -> Result<(Cluster, Cluster)> {
    let destination = load(&task.destination)?.with_staying(task.options.staying.clone());
    Ok((load(&task.source)?, destination))
}

/// The declared shards of a cluster, complete or not.
pub fn endpoints(name: &str) -> Result<Vec<Endpoint>> {
    let declared: Vec<Declared> = db::rows(
        "SELECT pg_catalog.jsonb_build_object('shard', s.shard, 'conninfo', s.conninfo, \
                'password', s.password) FROM reshard.declared_shard AS s \
          WHERE s.cluster = $1 ORDER BY s.shard",
        &[Arg::Text(name)],
    )?;
    declared
        .into_iter()
        .map(|d| {
            Ok(Endpoint {
                cluster: name.to_owned(),
                shard: d.shard,
                conninfo: Conninfo::parse(&d.conninfo)?.with_secret(d.password),
            })
        })
        .collect()
}

/// A declared shard, if it is.
///
/// # Errors
/// SPI's.
pub fn find(cluster: &str, shard: u32) -> Result<Option<Endpoint>> {
    Ok(endpoints(cluster)?.into_iter().find(|e| e.shard == shard))
}

/// The database that a shard was found to be when it was declared, as
/// [`identity::DATABASE`](crate::remote::identity::DATABASE) tells it.
///
/// # Errors
/// SPI's.
pub fn database_of(endpoint: &Endpoint) -> Result<Option<String>> {
    db::text(
        "SELECT s.database_id FROM reshard.declared_shard AS s \
          WHERE s.cluster = $1 AND s.shard = $2",
        &[Arg::Text(&endpoint.cluster), Arg::I64(i64::from(endpoint.shard))],
    )
}

fn server_name(cluster: &str, shard: u32) -> Result<String> {
    let name = format!("{cluster}/{shard}");
    if name.len() > 63 {
        return Err(Error::argument(format!("cluster name \"{cluster}\" is too long"))
            .detail("Cluster and shard number are kept as a server name of at most 63 bytes."));
    }
    Ok(name)
}

/// Keeps a declaration, with the database that was found there; one that says the same
/// already stays as it is.
///
/// # Errors
/// 42710 where that shard is declared otherwise.
pub fn declare(endpoint: &Endpoint, database: &str) -> Result<bool> {
    if let Some(existing) = find(&endpoint.cluster, endpoint.shard)? {
        if existing.conninfo == endpoint.conninfo {
            return Ok(false);
        }
        return Err(Error::new(Kind::DuplicateObject, format!("{endpoint} exists already"))
            .detail(format!("It is declared as \"{}\".", existing.conninfo.redacted()))
            .hint(format!(
                "Drop it first: SELECT reshard_drop_shard({}, {});",
                literal(&endpoint.cluster),
                endpoint.shard
            )));
    }
    let server = server_name(&endpoint.cluster, endpoint.shard)?;
    let (open, secret) = endpoint.conninfo.split_secret();
    db::run(&format!(
        "CREATE SERVER {} FOREIGN DATA WRAPPER reshard OPTIONS (cluster {}, shard {}, \
         conninfo {}, database_id {})",
        ident(&server),
        literal(&endpoint.cluster),
        literal(&endpoint.shard.to_string()),
        literal(&open.to_libpq()),
        literal(database),
    ))?;
    if let Some(secret) = secret {
        db::run(&format!(
            "CREATE USER MAPPING FOR PUBLIC SERVER {} OPTIONS (password {})",
            ident(&server),
            literal(&secret),
        ))?;
    }
    Ok(true)
}

/// Keeps a declared shard as one of another cluster too, under the same number.
///
/// # Errors
/// As [`declare`]; XX000 where it is not declared.
pub fn declare_as(declared: &Endpoint, cluster: &str) -> Result<()> {
    let database = database_of(declared)?
        .ok_or_else(|| Error::internal(format!("{declared} is not declared")))?;
    let same = Endpoint { cluster: cluster.to_owned(), ..declared.clone() };
    declare(&same, &database).map(|_| ())
}

/// Gives a cluster without sharding keys those of another one, and the mappings of their values.
///
/// # Errors
/// SPI's.
pub fn clone_rules(cluster: &str, new: &str) -> Result<()> {
    let names = [Arg::Text(cluster), Arg::Text(new)];
    db::execute(
        "INSERT INTO reshard.sharding_rule \
                (cluster_name, rule_no, column_names, method, schema_name, table_name) \
         SELECT $2, r.rule_no, r.column_names, r.method, r.schema_name, r.table_name \
           FROM reshard.sharding_rule AS r WHERE r.cluster_name = $1",
        &names,
    )?;
    db::execute(
        "INSERT INTO reshard.key_mapping \
                (cluster_name, column_name, mapping_no, kind, value, lower_bound, upper_bound, shard) \
         SELECT $2, m.column_name, m.mapping_no, m.kind, m.value, m.lower_bound, m.upper_bound, m.shard \
           FROM reshard.key_mapping AS m WHERE m.cluster_name = $1",
        &names,
    )
    .map(|_| ())
}

/// Keeps another connection string for a declared shard.
///
/// # Errors
/// SPI's.
pub fn replace(declared: &Endpoint, conninfo: &Conninfo) -> Result<()> {
    let server = ident(&server_name(&declared.cluster, declared.shard)?);
    let (open, secret) = conninfo.split_secret();
    db::run(&format!(
        "ALTER SERVER {server} OPTIONS (SET conninfo {})",
        literal(&open.to_libpq())
    ))?;
    let mapping = format!("USER MAPPING FOR PUBLIC SERVER {server}");
    match (declared.conninfo.get("password").is_some(), secret.as_deref().map(literal)) {
        (true, Some(secret)) => {
            db::run(&format!("ALTER {mapping} OPTIONS (SET password {secret})"))
        }
        (false, Some(secret)) => db::run(&format!("CREATE {mapping} OPTIONS (password {secret})")),
        (true, None) => db::run(&format!("DROP {mapping}")),
        (false, None) => Ok(()),
    }
}

/// Forgets a declaration; false where there was none.
pub fn drop(cluster: &str, shard: u32) -> Result<bool> {
    let exists = db::truth(
        "SELECT true FROM reshard.declared_shard AS s WHERE s.cluster = $1 AND s.shard = $2",
        &[Arg::Text(cluster), Arg::I64(i64::from(shard))],
    )?;
    if exists {
        db::run(&format!("DROP SERVER {} CASCADE", ident(&server_name(cluster, shard)?)))?;
    }
    Ok(exists)
}

/// Forgets all sharding keys of a cluster, and the mappings of their values; how many of each.
///
/// # Errors
/// SPI's.
pub fn drop_rules(cluster: &str) -> Result<(u64, u64)> {
    let rules = db::execute(
        "DELETE FROM reshard.sharding_rule WHERE cluster_name = $1",
        &[Arg::Text(cluster)],
    )?;
    Ok((rules, mapping::delete_unused(cluster)?))
}

/// Sharding keys of a cluster, in order of precedence: those of single tables, then
/// those of more columns.
pub fn rules(cluster: &str) -> Result<Vec<ShardingRule>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(r) FROM reshard.sharding_rule AS r WHERE r.cluster_name = $1 \
          ORDER BY r.table_name IS NULL, pg_catalog.cardinality(r.column_names) DESC, r.rule_no",
        &[Arg::Text(cluster)],
    )
}

/// The sharding key of a table, as the copy finds it; none where each shard has the table whole.
///
/// # Errors
/// SPI's.
pub fn rule_of(cluster: &str, relation: u32) -> Result<Option<ShardingRule>> {
    db::row(
        "SELECT pg_catalog.to_jsonb(k) FROM reshard.sharding_key_of($1::oid, $2) AS k \
          WHERE k.column_names IS NOT NULL",
        &[Arg::I64(i64::from(relation)), Arg::Text(cluster)],
    )
}

/// Adds a sharding key; false where it is known already.
///
/// # Errors
/// 42710 where the column has another method already.
pub fn add_rule(cluster: &str, rule: &ShardingRule) -> Result<bool> {
    let known = rules(cluster)?;
    if known.contains(rule) {
        return Ok(false);
    }
    // Mappings are those of a column: by list and by range they are different ones.
    let other = known.iter().find(|r| {
        r.method != rule.method
            && r.column_names == rule.column_names
            && (r.is_alike(rule) || r.method.is_mapped() && rule.method.is_mapped())
    });
    if let Some(other) = other {
        return Err(Error::new(
            Kind::DuplicateObject,
            format!(
                "column {} is a sharding key of cluster \"{cluster}\" by {} already",
                rule::shown(&rule.column_names),
                other.method.as_str()
            ),
        )
        .hint("Take that back first, with reshard_drop_sharding_key()."));
    }
    db::execute(
        "INSERT INTO reshard.sharding_rule \
                (cluster_name, rule_no, column_names, method, schema_name, table_name) \
         SELECT $1, coalesce(max(rule_no), 0) + 1, $2::name[], $5, $3, $4 \
           FROM reshard.sharding_rule WHERE cluster_name = $1",
        &[
            Arg::Text(cluster),
            Arg::Texts(rule.column_names.clone()),
            Arg::OptText(rule.schema_name.as_deref()),
            Arg::OptText(rule.table_name.as_deref()),
            Arg::Text(rule.method.as_str()),
        ],
    )?;
    Ok(true)
}

/// A published table that has all columns of a sharding key and is spread by another one of
/// as many columns, for all tables too, that was declared first.
///
/// # Errors
/// SPI's.
pub fn covered_before(cluster: &str, rule: &ShardingRule) -> Result<Option<String>> {
    db::text(
        "SELECT pg_catalog.min(pg_catalog.format('%I.%I', n.nspname, c.relname)) \
           FROM pg_catalog.pg_class AS c \
           JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
          CROSS JOIN LATERAL reshard.sharding_key_of(c.oid, $1) AS k \
          WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384 AND n.nspname <> 'reshard' \
            AND NOT EXISTS (SELECT FROM pg_catalog.unnest($2::name[]) AS w (name) \
                             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a \
                                    WHERE a.attrelid = c.oid AND a.attname = w.name \
                                      AND a.attnum > 0 AND NOT a.attisdropped)) \
            AND k.column_names <> $2::name[] \
            AND pg_catalog.cardinality(k.column_names) = pg_catalog.cardinality($2::name[]) \
            AND EXISTS (SELECT FROM reshard.sharding_rule AS r \
                         WHERE r.cluster_name = $1 AND r.table_name IS NULL \
                           AND r.column_names = k.column_names) \
            AND EXISTS (SELECT FROM pg_catalog.pg_publication_tables AS p \
                         WHERE p.schemaname = n.nspname AND p.tablename = c.relname)",
        &[Arg::Text(cluster), Arg::Texts(rule.column_names.clone())],
    )
}

/// Forgets a sharding key, of all tables or of one; false where there is none.
pub fn drop_rule(
    cluster: &str,
    columns: &[String],
    relation: Option<(&str, &str)>,
) -> Result<bool> {
    let (schema, table) = relation.unzip();
    let dropped = db::execute(
        "DELETE FROM reshard.sharding_rule \
          WHERE cluster_name = $1 AND column_names = $2::name[] \
            AND schema_name IS NOT DISTINCT FROM $3 AND table_name IS NOT DISTINCT FROM $4",
        &[
            Arg::Text(cluster),
            Arg::Texts(columns.to_vec()),
            Arg::OptText(schema),
            Arg::OptText(table),
        ],
    )?;
    Ok(dropped > 0)
}
