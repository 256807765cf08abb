//! What would stop or spoil a run, found before anything is touched.
//!
//! Responsible for the facts (read from every server of both clusters, in
//! read-only sessions; what two of them have to make for an answer is rolled back)
//! and for judging them. It changes nothing anywhere, and leaves no object, not
//! even a helper. Checks are functions from facts to
//! findings, with stable names; all but the gathering is pure.
mod activity;
mod capacity;
mod collation;
mod database;
mod destination;
mod facts;
mod finding;
mod gather;
mod nodes;
mod omni;
mod placement;
mod programs;
mod publication;
mod reach;
mod rows;
mod sample;
mod server;
mod settings;
mod size;
mod staying;
mod strays;
mod table;
mod unique;
mod ways;

pub use finding::{first_error, Finding, Severity};

use crate::cluster::staying::Staying;
use crate::cluster::{Cluster, ShardNo};
use crate::error::Result;
use crate::pg::runtime;
use crate::preflight::facts::Facts;
use crate::state::options::{Constraint, Options};

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
    programs::programs,
    server::connection,
    server::privilege,
    server::server_version,
    server::standby,
    settings::read_only,
    settings::value_settings,
    settings::wal_level,
    settings::slot_limits,
    settings::synchronous_standby,
    database::local_source,
    database::distinct_databases,
    nodes::node_support,
    nodes::node_extension,
    nodes::node_joined,
    nodes::node_publication,
    nodes::node_schema,
    nodes::node_sequences,
    nodes::source_key,
    strays::node_rows,
    staying::staying_shards,
    omni::node_omni_tables,
    unique::node_unique,
    publication::publication_exists,
    publication::publication_empty,
    publication::publication_identity,
    publication::all_tables_subscribers,
    publication::unpublished_columns,
    publication::sharding_key_missing,
    publication::sharding_key_table,
    publication::sharding_key_column,
    publication::sharding_key_published,
    publication::sharding_key_type,
    collation::sharding_key_collation,
    placement::sharding_key_mapping,
    placement::sharding_key_rows,
    placement::sharding_key_shards,
    table::sharding_key_null,
    database::exclude_schemas,
    destination::destination_extension,
    destination::destination_schema,
    destination::destination_empty,
    destination::destination_tables,
    size::disk_space,
    size::skew,
    capacity::replication_slots,
    capacity::wal_senders,
    capacity::worker_processes,
    capacity::apply_workers,
    capacity::replication_origins,
    capacity::connections,
    reach::reachable_from_shards,
    reach::reachable_from_source,
    database::encoding,
    database::locale,
    database::collation_versions,
    database::roles,
    database::tablespaces,
    database::extensions,
    table::foreign_keys,
    table::unique_constraints,
    table::firing_triggers,
    database::event_triggers,
    table::row_security,
    table::replica_identity,
    table::unlogged_tables,
    table::columnless_tables,
    table::extension_tables,
    table::large_objects,
    activity::long_transactions,
    activity::prepared_transactions,
    activity::subscriptions,
];

/// What the checks found.
pub struct Report {
    /// All findings.
    pub findings: Vec<Finding>,
    /// Foreign keys that can't, or may not, hold on each shard by itself.
    pub unfit_foreign_keys: Vec<Constraint>,
    /// The source shard that is this database.
    pub node: ShardNo,
    /// Shards that are in both clusters.
    pub staying: Staying,
}

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
) -> Result<Report> {
    let mut destination = destination.clone();
    if options.staying_shards {
        let declared = staying::declared(source, &destination)?;
        let staying = runtime::run(async { staying::ask(&declared).await })?;
        destination = destination.with_staying(Staying { shards: staying, receive: false });
    }
    let mut facts = Facts::local(verb, source, &destination, publication, options)?;
    runtime::run(async {
        gather::all(&mut facts).await;
        Ok(())
    })?;
    Ok(Report {
        findings: CHECKS.iter().flat_map(|check| check(&facts)).collect(),
        unfit_foreign_keys: table::unfit_foreign_keys(&facts),
        node: nodes::here(&facts),
        staying: staying::found(&facts),
    })
}
