//! Who runs when: the same servers, the same empty tables, one after the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reshard_scenarios::migration::{Migration, PUBLICATION, SOURCE};
use reshard_scenarios::session::literal;
use reshard_scenarios::{Error, Result, Rig, Server};

use crate::contestants as run;
use crate::data::{Table, KEY, SHARDED};
use crate::meter::{measure, Cost};
use crate::shell;

/// The longest cleaning up may take.
const CLEAN: Duration = Duration::from_secs(120);

/// Costs of each contestant, one a round.
pub type Results = BTreeMap<&'static str, Vec<Cost>>;

/// The floor.
pub const FLOOR: &str = "floor: split files from local disk";
/// This extension.
pub const RESHARD: &str = "reshard";
/// Pipes of psql.
pub const PIPES: &str = "psql | psql for each shard";
/// pgcopydb, one target.
pub const PGCOPYDB: &str = "pgcopydb, 4 jobs, one target";
/// Subscriptions that copy.
pub const NATIVE: &str = "native subscriptions";

/// The rig, with a cluster of so many of its shards declared.
pub struct Setup {
    rig: Arc<Rig>,
    shards: usize,
    tables: &'static [Table],
    definitions: String,
}

impl Setup {
    /// A hash-partitioned table of the key's type, made with the data: peers filter by it.
    pub const PLACEMENT: &'static str = "bench.placement";

    /// Declares the source, the cluster `bench_N` of the rig's first `shards` shards, and
    /// a publication of `tables`.
    pub async fn new(rig: &Arc<Rig>, shards: usize, tables: &'static [Table]) -> Result<Self> {
        let names: Vec<&str> = tables.iter().map(|(name, _)| *name).collect();
        for node in rig.sources() {
            node.execute(&format!(
                "CREATE EXTENSION IF NOT EXISTS reshard;
                 DROP PUBLICATION IF EXISTS {PUBLICATION};
                 CREATE PUBLICATION {PUBLICATION} FOR TABLE {}",
                names.join(", ")
            ))
            .await?;
        }
        let setup = Self {
            rig: Arc::clone(rig),
            shards,
            tables,
            definitions: shell::pre_data(&rig.source).await?,
        };
        setup.declare().await?;
        Ok(setup)
    }

    /// Declares both clusters, where that has not been done. Rows of several source
    /// shards are spread by the same key.
    async fn declare(&self) -> Result<()> {
        let session = self.rig.source.connect().await?;
        let destination = self.cluster();
        let known: i64 = session
            .one(&format!(
                "SELECT count(*) FROM reshard.clusters WHERE name = {}",
                literal(&destination)
            ))
            .await?;
        if known > 0 {
            return Ok(());
        }
        let (nodes, shards) = (self.rig.sources(), self.shards().iter().collect::<Vec<_>>());
        for (cluster, servers) in [(SOURCE, nodes), (&destination, shards)] {
            let name = literal(cluster);
            for (number, server) in servers.iter().enumerate() {
                let conninfo = literal(&server.conninfo());
                session
                    .execute(&format!("SELECT reshard_add_shard({name}, {number}, {conninfo})"))
                    .await?;
            }
            if cluster != SOURCE || servers.len() > 1 {
                session
                    .execute(&format!("SELECT reshard_set_sharding_key({name}, '{KEY}')"))
                    .await?;
            }
        }
        Ok(())
    }

    /// The servers.
    pub fn rig(&self) -> &Arc<Rig> {
        &self.rig
    }

    /// Those that are copied to.
    pub fn shards(&self) -> &[Server] {
        &self.rig.shards[..self.shards]
    }

    /// Tables that are copied.
    pub fn tables(&self) -> &'static [Table] {
        self.tables
    }

    /// Their cluster's name.
    pub fn cluster(&self) -> String {
        format!("bench_{}", self.shards)
    }

    /// Empty tables without keys on every shard; nothing left to write anywhere.
    async fn clear(&self) -> Result<()> {
        for shard in &self.rig.shards {
            let session = shard.connect().await?;
            session.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await?;
            session.execute(&self.definitions).await?;
            session.execute("CHECKPOINT").await?;
        }
        for node in self.rig.sources() {
            node.execute("CHECKPOINT").await?;
        }
        Ok(())
    }

    async fn floor(&self, files: &Path) -> Result<Cost> {
        self.clear().await?;
        let cost = measure(&self.rig, run::floor(self, files)).await?;
        run::counts(self, self.shards()).await?;
        Ok(cost)
    }

    async fn copy(&self) -> Result<Cost> {
        self.clear().await?;
        let mut migration: Option<Migration> = None;
        let cost = measure(&self.rig, async {
            let (own, took) = run::reshard(self).await?;
            migration = Some(own);
            Ok(took)
        })
        .await?;
        run::counts(self, self.shards()).await?;
        if let Some(migration) = migration {
            migration.cancel(CLEAN).await?;
        }
        Ok(cost)
    }
}

/// Everyone, round after round. pgcopydb copies one database, so it has no part where the
/// source has several shards.
pub async fn peers(setup: &Setup, rounds: usize) -> Result<Results> {
    let rig = setup.rig();
    let files = prepare_files(setup).await?;
    let target = &setup.shards()[..1];
    let mut results = Results::new();
    for round in 1..=rounds {
        let mut note = |name: &'static str, cost: Cost| {
            println!("round {round}: {name}: {cost}");
            results.entry(name).or_default().push(cost);
        };
        note(FLOOR, setup.floor(&files).await?);

        note(RESHARD, setup.copy().await?);

        setup.clear().await?;
        note(PIPES, measure(rig, run::psql_pipes(setup)).await?);
        run::counts(setup, setup.shards()).await?;

        if rig.nodes.is_empty() {
            setup.clear().await?;
            let folder = rig.folder().join("pgcopydb");
            note(PGCOPYDB, measure(rig, run::pgcopydb(setup, &target[0], &folder)).await?);
            run::counts(setup, target).await?;
        }

        setup.clear().await?;
        note(NATIVE, measure(rig, run::subscriptions(setup)).await?);
        run::counts(setup, setup.shards()).await?;
        run::end_subscriptions(setup).await?;
    }
    setup.clear().await?;
    Ok(results)
}

/// This extension alone.
pub async fn alone(setup: &Setup, rounds: usize) -> Result<()> {
    for round in 1..=rounds {
        println!("round {round}: {}", setup.copy().await?);
    }
    Ok(())
}

/// The floor's files, written by the shards from a first copy. They are here.
async fn prepare_files(setup: &Setup) -> Result<PathBuf> {
    setup.clear().await?;
    run::psql_pipes(setup).await?;
    let files = setup.rig.folder().join("shard0").join(setup.cluster());
    std::fs::create_dir(&files).map_err(Error::io("make the folder of files"))?;
    let mut own = tokio::process::Command::new("chmod");
    own.arg("777").arg(&files);
    shell::run(own).await?;
    run::split(setup, &files).await?;
    Ok(files)
}

/// How the time grows with shards and with workers.
pub struct Growth {
    /// Shards and the floor's costs.
    pub floor: Vec<(usize, Vec<Cost>)>,
    /// Shards and costs, with the default number of workers.
    pub shards: Vec<(usize, Vec<Cost>)>,
    /// Workers and costs, with four shards.
    pub workers: Vec<(usize, Vec<Cost>)>,
}

/// This extension with other numbers of shards and of workers, and the floor, which says
/// what more shards cost on this machine whoever copies. Without the omni table, of which
/// each further shard means one more copy.
pub async fn growth(
    rig: &Arc<Rig>,
    rounds: usize,
    shards: &[usize],
    workers: &[usize],
) -> Result<Growth> {
    let none = |numbers: &[usize]| numbers.iter().map(|n| (*n, Vec::new())).collect();
    let mut growth = Growth { floor: none(shards), shards: none(shards), workers: none(workers) };
    let mut files = BTreeMap::new();
    for number in shards {
        files.insert(*number, prepare_files(&Setup::new(rig, *number, SHARDED).await?).await?);
    }
    for round in 1..=rounds {
        for ((number, costs), (_, floor)) in growth.shards.iter_mut().zip(&mut growth.floor) {
            let setup = Setup::new(rig, *number, SHARDED).await?;
            let cost = setup.floor(&files[number]).await?;
            println!("round {round}: floor, {number} shards: {:.2} s", cost.time.as_secs_f64());
            floor.push(cost);
            let cost = setup.copy().await?;
            println!("round {round}: 1 -> {number}: {:.2} s", cost.time.as_secs_f64());
            costs.push(cost);
        }
        for (number, costs) in &mut growth.workers {
            let setup = Setup::new(rig, crate::SHARDS, SHARDED).await?;
            set_workers(rig, *number).await?;
            let cost = setup.copy().await?;
            println!("round {round}: {number} workers: {:.2} s", cost.time.as_secs_f64());
            costs.push(cost);
        }
        set_workers(rig, crate::WORKERS).await?;
    }
    Ok(growth)
}

async fn set_workers(rig: &Rig, number: usize) -> Result<()> {
    let session = rig.source.connect().await?;
    session.execute(&format!("ALTER SYSTEM SET reshard.max_copy_workers = {number}")).await?;
    session.execute("SELECT pg_reload_conf()").await
}
