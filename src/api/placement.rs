//! Placement of single values.
use pgrx::prelude::*;

use crate::error::Error;
use crate::pg::db::{self, Arg};
use crate::pg::report::or_raise;

/// Number of shards of a cluster, for `reshard_shard_for`.
///
/// # Errors
/// 42704 where no shard of that cluster is declared.
#[pg_extern(security_definer, stable, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_shard_count(cluster: &str) -> i32 {
    or_raise(
        db::bigint(
            "SELECT pg_catalog.count(*) FROM reshard.declared_shard WHERE cluster = $1",
            &[Arg::Text(cluster)],
        )
        .and_then(|count| match count.unwrap_or(0) {
            0 => Err(Error::missing(format!("cluster \"{cluster}\" does not exist"))
                .hint("SELECT name FROM reshard.clusters;")),
            count => Ok(count as i32),
        }),
    )
}
