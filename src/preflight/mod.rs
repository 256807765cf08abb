//! What would stop or spoil a run, found before anything is touched.
//!
//! Responsible for the facts (read from every server of both clusters, in
//! read-only sessions) and for judging them. It changes nothing anywhere, and
//! makes no object, not even a helper. Checks are functions from facts to
//! findings, with stable names; all but the gathering is pure.
mod activity;
mod capacity;
mod database;
mod destination;
mod facts;
mod finding;
mod gather;
mod publication;
mod reach;
mod server;
mod table;

pub use finding::{first_error, Finding, Severity};

use crate::cluster::Cluster;
use crate::error::Result;
use crate::pg::runtime;
use crate::preflight::facts::Facts;
use crate::state::options::Options;

/// What is about to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `reshard_start()`.
    Start,
    /// `reshard_schema_sync()`.
    SchemaSync,
    /// `reshard_copy_data()`.
    CopyData,
    /// `reshard_replicate()`.
    Replicate,
}

impl Verb {
    /// Whether changes will flow, so that slots, workers and the like are needed.
    fn has_flows(self) -> bool {
        self != Self::SchemaSync
    }

    /// Whether the schema is brought to the shards.
    fn makes_schema(self) -> bool {
        matches!(self, Self::Start | Self::SchemaSync)
    }
}

/// A check: what it finds in the facts.
type Check = fn(&Facts<'_>) -> Vec<Finding>;

/// All checks, in the order in which a DBA would mend what they find.
const CHECKS: &[Check] = &[
    server::library_preloaded,
    server::connection,
    server::privilege,
    server::server_version,
    server::standby,
    server::wal_level,
    database::local_source,
    database::distinct_databases,
    publication::publication_exists,
    publication::publication_empty,
    publication::sharding_key_missing,
    publication::sharding_key_table,
    publication::sharding_key_column,
    publication::sharding_key_published,
    publication::sharding_key_type,
    destination::destination_extension,
    destination::destination_empty,
    destination::destination_tables,
    capacity::replication_slots,
    capacity::wal_senders,
    capacity::worker_processes,
    capacity::apply_workers,
    capacity::replication_origins,
    capacity::connections,
    reach::reachable_from_shards,
    database::encoding,
    database::locale,
    database::roles,
    database::extensions,
    table::foreign_keys,
    table::unique_constraints,
    table::firing_triggers,
    table::replica_identity,
    table::unlogged_tables,
    table::large_objects,
    activity::long_transactions,
    activity::prepared_transactions,
];

/// Runs all checks. To be called in a SQL function: it drives its own sessions
/// to the other servers.
///
/// # Errors
/// The state tables can't be read. A server that can't be reached is a finding.
pub fn check(
    verb: Verb,
    source: &Cluster,
    destination: &Cluster,
    publication: &str,
    options: &Options,
) -> Result<Vec<Finding>> {
    let mut facts = Facts::local(verb, source, destination, publication, options)?;
    runtime::run(async {
        gather::all(&mut facts).await;
        Ok(())
    })?;
    Ok(CHECKS.iter().flat_map(|check| check(&facts)).collect())
}
