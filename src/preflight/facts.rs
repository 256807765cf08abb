//! The facts that checks judge.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cluster::rule::once;
use crate::cluster::{Cluster, Method, ShardingKey, ShardingRule, Side};
use crate::error::{Error, Result};
use crate::gucs;
use crate::pg::{db, shmem};
use crate::preflight::collation::Order;
use crate::preflight::nodes::Nodes;
use crate::preflight::placement::Mapped;
use crate::preflight::programs::Programs;
use crate::preflight::strays::Strays;
use crate::preflight::Verb;
use crate::remote::{identity, Endpoint};
use crate::state;
use crate::state::options::Options;

/// All that is known before a run.
pub struct Facts<'a> {
    /// What is about to be started.
    pub verb: Verb,
    /// Choices of the run.
    pub options: &'a Options,
    /// The user's publication.
    pub publication: &'a str,
    /// Where the rows are.
    pub source: &'a Cluster,
    /// Where they shall be.
    pub destination: &'a Cluster,
    /// Sharding keys of the destination.
    pub rules: Vec<ShardingRule>,
    /// Those of the source; none that matter where it has one shard.
    pub source_rules: Vec<ShardingRule>,
    /// Tells this database from others in names on the shards.
    pub token: String,
    /// Whether the library was preloaded here.
    pub preloaded: bool,
    /// `shared_preload_libraries` as the next start will read it.
    pub libraries: String,
    /// The programs that the verb needs here.
    pub programs: Programs,
    /// System identifier and name of this database.
    pub here: (String, String),
    /// Copy workers of the run.
    pub copy_workers: i64,
    /// Every shard of both clusters.
    pub servers: Vec<Server<'a>>,
    /// What this database holds; none where it can't be read.
    pub content: Option<Content>,
    /// Servers that could not connect to others as subscriptions will.
    pub unreachable: Vec<Unreachable>,
    /// What is known of a source of several shards.
    pub nodes: Option<Nodes>,
    /// A migration of another shard that this database takes part in.
    pub joined: Option<String>,
    /// Tables whose keys are mapped to shards, of either cluster.
    pub mapped: Vec<Mapped>,
    /// Rows that lie on the wrong shard of the source.
    pub strays: Vec<Strays>,
    /// How all servers sort keys that are mapped by range.
    pub orders: Vec<Order>,
}

/// A connection that a subscription needs and that could not be made.
pub struct Unreachable {
    /// Who tried.
    pub from: Endpoint,
    /// The publisher.
    pub to: Endpoint,
    /// What the server that tried said.
    pub error: Error,
}

/// A shard of either cluster.
pub struct Server<'a> {
    /// Where it is.
    pub endpoint: &'a Endpoint,
    /// Its cluster's part in the run.
    pub side: Side,
    /// What it says about itself, or why it can't.
    pub state: ServerState,
    /// Relations of the source that it has already; destination only.
    pub existing: Vec<Existing>,
    /// Bytes that are free where its data is; none where it can't be told.
    pub free_bytes: Option<i64>,
}

/// How far a server could be asked.
pub enum ServerState {
    /// Not asked yet.
    Unknown,
    /// It can't be reached, or refused the questions.
    Unreachable(Error),
    /// Its role is no superuser: it can't be asked.
    Unprivileged(Error),
    /// It answered.
    Known(Box<ServerFacts>),
}

/// Standbys that commits of a server wait for.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SynchronousStandbys {
    /// `synchronous_standby_names`
    pub names: String,
    /// How many of them a commit waits for.
    pub needed: i64,
    /// How many are connected.
    pub connected: i64,
}

/// What a server says about itself.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ServerFacts {
    pub version: i32,
    pub system: String,
    pub database: String,
    pub in_recovery: bool,
    pub wal_level: String,
    pub max_slots: i64,
    pub used_slots: i64,
    pub max_senders: i64,
    pub used_senders: i64,
    pub max_origins: i64,
    pub used_origins: i64,
    pub max_apply_workers: i64,
    pub used_apply_workers: i64,
    pub max_workers: i64,
    pub used_workers: i64,
    pub max_connections: i64,
    pub used_connections: i64,
    pub encoding: String,
    pub locale: String,
    pub collation_version: Option<String>,
    pub outdated_collations: Vec<OutdatedCollation>,
    pub event_triggers: Vec<String>,
    pub tablespaces: Vec<String>,
    pub slot_limits: Vec<String>,
    pub read_only: bool,
    pub misreading: Vec<String>,
    pub synchronous_standbys: SynchronousStandbys,
    pub helper_schema: Option<String>,
    pub roles: Vec<String>,
    pub extensions: BTreeMap<String, String>,
    pub available: BTreeMap<String, Option<String>>,
    pub prepared: Vec<String>,
    pub long_transactions: Vec<Transaction>,
}

/// A collation whose rules have changed since it was made.
#[derive(Debug, Clone, Deserialize)]
pub struct OutdatedCollation {
    pub name: String,
    pub recorded: String,
    pub actual: String,
}

/// A transaction that has been open for long.
#[derive(Debug, Clone, Deserialize)]
pub struct Transaction {
    pub pid: i32,
    pub user: Option<String>,
    pub application: Option<String>,
    pub state: Option<String>,
    pub seconds: i64,
}

/// What a source database holds.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Content {
    /// All relations, those of extensions apart.
    pub relations: Vec<Relation>,
    pub publications: Vec<String>,
    /// The user's publication publishes UPDATE or DELETE.
    pub publishes_changes: bool,
    /// Publications FOR ALL TABLES, quoted.
    pub publications_of_all: Vec<String>,
    /// Slots of native replication that are not of a migration.
    pub slots_of_others: Vec<String>,
    pub unlogged: Vec<String>,
    /// Published tables without columns.
    pub columnless: Vec<Columnless>,
    pub large_objects: i64,
    #[serde(default)]
    pub subscriptions: Vec<Subscription>,
    pub used_roles: Vec<Role>,
    pub tablespaces: Vec<Tablespace>,
    pub schemas: Vec<String>,
    pub row_security: Vec<Secured>,
    /// What the relations look like that a shard has already.
    #[serde(skip)]
    pub definitions: Vec<Existing>,
    /// Extensions that come along; none where all do.
    #[serde(skip)]
    pub needed_extensions: Option<BTreeSet<String>>,
    /// What the run needs and leaves behind by option `exclude_schemas`.
    #[serde(skip)]
    pub needed_behind: Vec<Behind>,
    #[serde(skip)]
    pub tables: Vec<Table>,
    #[serde(skip)]
    pub foreign_keys: Vec<ForeignKey>,
}

/// An object of a schema that stays behind.
#[derive(Debug, Clone)]
pub struct Behind {
    /// As `Needed` names it, or `extension`.
    pub class: String,
    pub schema_name: String,
    pub name: String,
}

/// A published table without columns.
#[derive(Debug, Clone, Deserialize)]
pub struct Columnless {
    pub name: String,
    /// It seems to have rows.
    pub filled: bool,
}

/// A subscription that writes to tables which move.
#[derive(Debug, Clone, Deserialize)]
pub struct Subscription {
    pub name: String,
    pub quoted: String,
    pub tables: String,
}

/// A tablespace that relations lie in.
#[derive(Debug, Clone, Deserialize)]
pub struct Tablespace {
    pub name: String,
    pub quoted: String,
    /// The relations, where options leave some out.
    pub uses: Vec<Use>,
}

/// A published table with row security.
#[derive(Debug, Clone, Deserialize)]
pub struct Secured {
    pub name: String,
    /// It holds for the table's owner too, who applies changes from version 16 on.
    pub refuses_apply: bool,
}

/// A role that owns something, or may do something with it.
#[derive(Debug, Clone, Deserialize)]
pub struct Role {
    pub name: String,
    pub quoted: String,
    pub login: bool,
    /// What it owns or may use, where options leave some out.
    pub uses: Vec<Use>,
}

/// An object that a role owns or may use, or that lies in a tablespace.
#[derive(Debug, Clone, Deserialize)]
pub struct Use {
    /// `relation`, `routine`, `type`, `schema`; none of another class.
    pub class: Option<String>,
    pub schema_name: Option<String>,
    pub name: Option<String>,
}

/// A published table, or a partitioned one above it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Table {
    pub oid: i64,
    pub schema_name: String,
    pub table_name: String,
    /// Both, quoted where needed.
    pub name: String,
    pub leaf: bool,
    /// Size of its rows, out-of-line values included.
    pub heap_bytes: i64,
    /// Columns of its sharding key, as declared.
    pub key: Option<Vec<String>>,
    /// How values of the key are placed.
    pub key_method: Option<Method>,
    /// The same columns as the table has them.
    pub key_columns: Vec<KeyColumn>,
    /// Row filter of the publication.
    pub row_filter: Option<String>,
    /// The columns that it looks at.
    pub filter_columns: Vec<String>,
    /// Columns that the publication covers.
    pub published: Vec<String>,
    /// `full`, `index`, `primary key` or `none`.
    pub identity: String,
    pub identity_columns: Vec<String>,
    /// Unique indexes that can be an identity, in the order in which the run chooses.
    pub identity_candidates: Vec<Candidate>,
    /// Columns that are never null.
    pub not_null: Vec<String>,
    /// It has a primary key, all of it published.
    pub publishes_primary_key: bool,
    /// Published columns of types without equality.
    pub incomparable: Vec<String>,
    pub column_list: bool,
    /// Columns that must have a value, have no default and aren't published.
    pub unfilled: Vec<String>,
    /// It has stored generated columns, where the server publishes none of them as identity.
    pub generated: bool,
    pub row_estimate: i64,
    /// Size with indexes.
    pub total_bytes: i64,
    /// Rows have a sharding key that is all null; none where that took too long to look for.
    #[serde(default)]
    pub has_null_keys: Option<bool>,
    /// Rows that were looked at for the next.
    #[serde(default)]
    pub sampled: i64,
    /// How its rows are spread, by a sample of them: rows and bytes of each shard.
    #[serde(default)]
    pub sample: Vec<(i64, i64)>,
    pub unkeyed_unique: Vec<Unique>,
    pub firing_triggers: Vec<String>,
    /// The extension that made it.
    pub extension: Option<String>,
}

/// A column of a sharding key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct KeyColumn {
    pub name: String,
    pub exists: bool,
    pub generated: bool,
    pub published: bool,
    /// Its type, with modifiers.
    pub type_shown: Option<String>,
    /// Its type without modifiers, as SQL.
    pub type_name: Option<String>,
    pub type_oid: Option<u32>,
    pub collation: Option<u32>,
    /// The same, quoted, with its schema.
    pub collation_name: Option<String>,
    pub not_null: bool,
    /// Its type and collation come with PostgreSQL.
    pub built_in: bool,
    pub comparable: bool,
    /// The function that hash partitioning calls, and its family; none where there is none.
    pub hash: Option<String>,
    pub hash_family: Option<u32>,
}

/// A unique index that can be a replica identity.
#[derive(Debug, Clone, Deserialize)]
pub struct Candidate {
    pub name: String,
    pub columns: Vec<String>,
}

/// A unique index without the sharding key.
#[derive(Debug, Clone, Deserialize)]
pub struct Unique {
    pub name: String,
    /// It holds a column whose default never gives a value twice.
    pub generated: bool,
}

/// A foreign key whose rows move.
#[derive(Debug, Clone, Deserialize)]
pub struct ForeignKey {
    pub name: String,
    pub from: i64,
    pub to: i64,
    pub from_schema: String,
    pub from_table: String,
    pub from_name: String,
    pub to_name: String,
    pub from_columns: Vec<String>,
    pub to_columns: Vec<String>,
    /// Whether rows were found that refer to a row on another shard; none where
    /// that was not looked for, or took too long.
    #[serde(default)]
    pub crosses: Option<bool>,
}

/// A relation of the source.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Relation {
    pub schema_name: String,
    pub table_name: String,
}

/// A relation of the source that a shard has already.
#[derive(Debug, Clone, Deserialize)]
pub struct Existing {
    pub oid: i64,
    pub schema_name: String,
    pub table_name: String,
    pub name: String,
    /// What it is and which columns it has.
    pub definition: String,
    pub is_table: bool,
    /// Its row security holds for its owner too, who applies changes from version 16 on.
    pub refuses_apply: bool,
    /// Its rows shall move.
    #[serde(default)]
    pub published: bool,
    #[serde(default)]
    pub has_rows: bool,
    /// An earlier task of this database made it.
    #[serde(default)]
    pub ours: bool,
}

impl<'a> Facts<'a> {
    /// What this database itself knows. Runs in the caller's transaction.
    ///
    /// # Errors
    /// The state tables can't be read.
    pub fn local(
        verb: Verb,
        source: &'a Cluster,
        destination: &'a Cluster,
        publication: &'a str,
        options: &'a Options,
    ) -> Result<Self> {
        let side = |cluster: &'a Cluster, side: Side| {
            cluster.joining().map(move |endpoint| Server {
                endpoint,
                side,
                state: ServerState::Unknown,
                existing: Vec::new(),
                free_bytes: None,
            })
        };
        let system = db::text(identity::SERVER, &[])?;
        let libraries = db::text(
            "SELECT coalesce((SELECT f.setting FROM pg_catalog.pg_file_settings AS f \
                               WHERE f.name = 'shared_preload_libraries' \
                               ORDER BY f.seqno DESC LIMIT 1), \
                             pg_catalog.current_setting('shared_preload_libraries'))",
            &[],
        )?;
        let database = db::text("SELECT pg_catalog.current_database()::text", &[])?;
        Ok(Self {
            verb,
            options,
            publication,
            source,
            destination,
            rules: state::cluster::rules(&destination.name)?,
            source_rules: state::cluster::rules(&source.name)?,
            token: state::token()?,
            preloaded: shmem::is_preloaded(),
            libraries: libraries.unwrap_or_default(),
            programs: Programs::default(),
            here: (system.unwrap_or_default(), database.unwrap_or_default()),
            copy_workers: gucs::copy_workers(source.size()).into(),
            servers: side(source, Side::Source)
                .chain(side(destination, Side::Destination))
                .collect(),
            content: None,
            unreachable: Vec::new(),
            nodes: None,
            joined: state::joined()?,
            mapped: Vec::new(),
            strays: Vec::new(),
            orders: Vec::new(),
        })
    }

    /// Whether a server is this database.
    pub fn is_here(&self, known: &ServerFacts) -> bool {
        (known.system.as_str(), known.database.as_str())
            == (self.here.0.as_str(), self.here.1.as_str())
    }

    /// Servers that answered, with what they said.
    pub fn known(&self) -> impl Iterator<Item = (&Server<'a>, &ServerFacts)> {
        self.servers.iter().filter_map(|server| match &server.state {
            ServerState::Known(facts) => Some((server, facts.as_ref())),
            _ => None,
        })
    }

    /// As [`Facts::known`], of one side.
    pub fn known_of(&self, side: Side) -> impl Iterator<Item = (&Server<'a>, &ServerFacts)> {
        self.known().filter(move |(server, _)| server.side == side)
    }

    /// Tables whose rows move; nothing where the source can't be read.
    pub fn leaves(&self) -> impl Iterator<Item = &Table> {
        self.content.iter().flat_map(|c| &c.tables).filter(|t| t.leaf)
    }

    /// Tables whose rows move, and partitioned ones above them.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.content.iter().flat_map(|c| &c.tables)
    }

    /// Tables whose rows move, with their keys on the destination; of a source of several
    /// shards once more, with their keys there.
    pub fn keyed(&self) -> impl Iterator<Item = (&'a Cluster, &Table)> {
        let there = self.leaves().map(|table| (self.destination, table));
        let here = self.nodes.iter().flat_map(|nodes| &nodes.tables);
        there.chain(here.map(|table| (self.source, table)))
    }

    /// The columns that row filters on the source and on the shards will look at.
    pub fn filter_columns(&self, table: &Table) -> Vec<String> {
        let key = table.sharding_key().filter(|_| self.is_spread());
        let key = key.into_iter().flat_map(|key| key.columns);
        let source_key = self.nodes.iter().flat_map(|nodes| nodes.key_of(table));
        once(key.chain(source_key).chain(&table.filter_columns))
    }

    /// Whether rows have to be spread.
    pub fn is_spread(&self) -> bool {
        self.destination.size() > 1
    }
}

impl Table {
    /// Whether its rows are spread over the shards.
    pub fn is_sharded(&self) -> bool {
        self.sharding_key().is_some()
    }

    /// Whether PostgreSQL takes UPDATE and DELETE while they are published
    /// (`CheckCmdReplicaIdentity` of src/backend/executor/execReplication.c).
    pub fn takes_changes(&self) -> bool {
        let holds =
            |columns: &[String], wanted: &[String]| wanted.iter().all(|c| columns.contains(c));
        self.identity == "full"
            || self.identity != "none"
                && holds(&self.published, &self.identity_columns)
                && holds(&self.identity_columns, &self.filter_columns)
    }

    /// What spreads it over the destination; none where it lacks a column of that.
    pub fn sharding_key(&self) -> Option<ShardingKey<'_>> {
        let whole = self.key_columns.iter().all(|c| c.exists);
        ShardingKey::of(self.key.as_deref(), self.key_method).filter(|_| whole)
    }

    /// Whether equal keys of the two tables are placed on the same shard.
    pub fn is_placed_like(&self, other: &Self) -> bool {
        match (self.sharding_key(), other.sharding_key()) {
            (Some(one), Some(two)) if (one.method, two.method) == (Method::Hash, Method::Hash) => {
                let families = |t: &Self| -> Vec<Option<u32>> {
                    t.key_columns.iter().map(|c| c.hash_family).collect()
                };
                families(self) == families(other)
            }
            (one, two) => one == two,
        }
    }

    /// Whether the keys of the two tables are of the same types.
    pub fn has_types_of(&self, other: &Self) -> bool {
        let types = |t: &Self| -> Vec<Option<String>> {
            t.key_columns.iter().map(|c| c.type_shown.clone()).collect()
        };
        types(self) == types(other)
    }
}

impl Use {
    /// Whether it lies in one of these schemas, or is one.
    pub fn is_in(&self, schemas: &[String]) -> bool {
        let schema = match self.class.as_deref() {
            Some("schema") => &self.name,
            _ => &self.schema_name,
        };
        schema.as_ref().is_some_and(|schema| schemas.contains(schema))
    }
}

impl ForeignKey {
    /// Whether the sharding keys of both tables are matched by it, so that rows
    /// which refer to one another are on the same shard.
    pub fn holds_keys(&self, from_key: &[String], to_key: &[String]) -> bool {
        let matched = |from: &String, to: &String| {
            self.from_columns.iter().zip(&self.to_columns).any(|(f, t)| f == from && t == to)
        };
        from_key.len() == to_key.len() && from_key.iter().zip(to_key).all(|(f, t)| matched(f, t))
    }
}
