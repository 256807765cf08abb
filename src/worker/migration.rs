//! A migration as its driver holds it: the task, both clusters, the names.
use crate::cluster::{Direction, ShardNo, Side};
use crate::error::Result;
use crate::pg::xact::transaction;
use crate::remote::Links;
use crate::replication::join;
use crate::replication::settle::Place;
use crate::state::flow::{self, Flow};
use crate::state::options::Ddl;
use crate::state::table::{self, Table};
use crate::state::task::Task;
use crate::state::{self, cluster};

/// A migration and its connections. Made anew for each phase.
pub struct Migration {
    /// Its task.
    pub task: Task,
    /// Connections to both clusters.
    pub links: Links,
    /// Tells this database's objects from those of others.
    pub token: String,
}

impl Migration {
    /// Loads the clusters of a task; opens no connection yet.
    ///
    /// # Errors
    /// Those of [`cluster::of_task`].
    pub fn load(task: Task) -> Result<Self> {
        let ((source, destination), token) =
            transaction(|| Ok((cluster::of_task(&task)?, state::token()?)))?;
        let node = ShardNo(task.options.node);
        Ok(Self { task, links: Links::new(source, destination, node), token })
    }

    /// Its number.
    pub fn id(&self) -> i64 {
        self.task.id
    }

    /// Prefix of all its objects, on every server.
    pub fn prefix(&self) -> String {
        flow::object_prefix(&self.token, self.id())
    }

    /// Its tables.
    ///
    /// # Errors
    /// SPI's.
    pub fn tables(&self) -> Result<Vec<Table>> {
        transaction(|| table::load(self.id()))
    }

    /// Its flows of one direction, as written down.
    ///
    /// # Errors
    /// SPI's.
    pub fn flows(&self, direction: Direction) -> Result<Vec<Flow>> {
        transaction(|| flow::load_direction(self.id(), direction))
    }

    /// The cluster of a side.
    pub fn place(&self, side: Side) -> Place<'_> {
        Place { cluster: self.links.cluster(side), side, stays: self.has_staying() }
    }

    /// Whether some shards are in both clusters.
    pub fn has_staying(&self) -> bool {
        !self.links.cluster(Side::Destination).staying.is_empty()
    }

    /// The columns that row filters of either direction look at: a replica identity has
    /// to hold them all.
    pub fn filter_columns(&self, table: &Table) -> Vec<String> {
        let spread = |side: &Side| self.links.cluster(*side).size() > 1;
        let sides: Vec<Side> =
            [Side::Destination, Side::Source].into_iter().filter(spread).collect();
        table.filtered_by(&sides)
    }

    /// Whether columns may be added to its tables while it lasts.
    pub fn grows(&self) -> bool {
        self.task.options.ddl != Ddl::Block
    }

    /// Tells the other source shards of the migration. Repeatable.
    ///
    /// # Errors
    /// As [`join::join`].
    pub async fn join_nodes(&self) -> Result<()> {
        let joined = join::Joined {
            token: &self.token,
            task_id: self.id(),
            kind: self.task.kind.as_str(),
            source: &self.task.source,
            destination: &self.task.destination,
            publication: &self.task.publication,
            ddl: self.task.options.ddl.as_str(),
        };
        for (shard, session) in self.links.other_nodes().await? {
            join::join(&session, shard, &joined).await?;
        }
        Ok(())
    }

    /// The flows of one direction and wave, between all shards that rows move between.
    pub fn make_flows(&self, direction: Direction, wave: i32) -> Vec<Flow> {
        let (source, destination) =
            (self.links.cluster(Side::Source), self.links.cluster(Side::Destination));
        source
            .numbers()
            .flat_map(|s| destination.numbers().map(move |d| (s, d)))
            .filter(|(s, d)| destination.staying.has_flow(*s, *d))
            .map(|(s, d)| Flow::new(&self.token, self.id(), direction, wave, s, d))
            .collect()
    }
}
