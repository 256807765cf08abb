//! Declared clusters: FOREIGN SERVERs of the wrapper `reshard`, their passwords
//! in user mappings, their sharding keys in `reshard.sharding_rule`.
use serde::Deserialize;

use crate::cluster::{Cluster, ShardingRule};
use crate::error::{Error, Kind, Result};
use crate::pg::db::{self, Arg};
use crate::remote::quote::{ident, literal};
use crate::remote::{Conninfo, Endpoint};

#[derive(Deserialize)]
struct Declared {
    shard: u32,
    conninfo: String,
    password: Option<String>,
}

/// The shards of a cluster, passwords included.
///
/// # Errors
/// 42704 where no shard of that cluster is declared, 55000 where one is missing.
pub fn load(name: &str) -> Result<Cluster> {
    Cluster::new(name, endpoints(name)?)
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

fn server_name(cluster: &str, shard: u32) -> Result<String> {
    let name = format!("{cluster}/{shard}");
    if name.len() > 63 {
        return Err(Error::argument(format!("cluster name \"{cluster}\" is too long"))
            .detail("Cluster and shard number are kept as a server name of at most 63 bytes."));
    }
    Ok(name)
}

/// Keeps a declaration; one that says the same already stays as it is.
///
/// # Errors
/// 42710 where that shard is declared otherwise.
pub fn declare(endpoint: &Endpoint) -> Result<bool> {
    let existing = endpoints(&endpoint.cluster)?.into_iter().find(|e| e.shard == endpoint.shard);
    if let Some(existing) = existing {
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
        "CREATE SERVER {} FOREIGN DATA WRAPPER reshard OPTIONS (cluster {}, shard {}, conninfo {})",
        ident(&server),
        literal(&endpoint.cluster),
        literal(&endpoint.shard.to_string()),
        literal(&open.to_libpq()),
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

/// Forgets a declaration; false where there was none.
pub fn drop(cluster: &str, shard: u32) -> Result<bool> {
    let exists = endpoints(cluster)?.iter().any(|e| e.shard == shard);
    if exists {
        db::run(&format!("DROP SERVER {} CASCADE", ident(&server_name(cluster, shard)?)))?;
    }
    Ok(exists)
}

/// Sharding keys of a cluster, those of single tables first.
pub fn rules(cluster: &str) -> Result<Vec<ShardingRule>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(r) FROM reshard.sharding_rule AS r WHERE r.cluster_name = $1 \
          ORDER BY r.table_name IS NULL, r.rule_no",
        &[Arg::Text(cluster)],
    )
}

/// Adds a sharding key; false where it is known already.
pub fn add_rule(cluster: &str, rule: &ShardingRule) -> Result<bool> {
    if rules(cluster)?.contains(rule) {
        return Ok(false);
    }
    db::execute(
        "INSERT INTO reshard.sharding_rule \
                (cluster_name, rule_no, column_name, method, schema_name, table_name) \
         SELECT $1, coalesce(max(rule_no), 0) + 1, $2, 'hash', $3, $4 \
           FROM reshard.sharding_rule WHERE cluster_name = $1",
        &[
            Arg::Text(cluster),
            Arg::Text(&rule.column_name),
            Arg::OptText(rule.schema_name.as_deref()),
            Arg::OptText(rule.table_name.as_deref()),
        ],
    )?;
    Ok(true)
}

/// Forgets a sharding key; false where there is none like it.
pub fn drop_rule(cluster: &str, rule: &ShardingRule) -> Result<bool> {
    let dropped = db::execute(
        "DELETE FROM reshard.sharding_rule \
          WHERE cluster_name = $1 AND column_name = $2 \
            AND schema_name IS NOT DISTINCT FROM $3 AND table_name IS NOT DISTINCT FROM $4",
        &[
            Arg::Text(cluster),
            Arg::Text(&rule.column_name),
            Arg::OptText(rule.schema_name.as_deref()),
            Arg::OptText(rule.table_name.as_deref()),
        ],
    )?;
    Ok(dropped > 0)
}
