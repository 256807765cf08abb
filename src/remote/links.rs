//! The control sessions of one migration: one to each shard of both clusters,
//! opened when first needed and again when lost.
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use futures::future::{join_all, try_join_all};

use crate::cluster::{Cluster, ShardNo, Side};
use crate::error::{Error, Result};
use crate::remote::{connect, Connection, Endpoint, Purpose};

/// Both clusters of a migration, and a session on each of their shards.
pub struct Links {
    node: ShardNo,
    source: Bundle,
    destination: Bundle,
}

struct Bundle {
    cluster: Cluster,
    sessions: RefCell<Vec<Option<Rc<Connection>>>>,
}

impl Bundle {
    fn new(cluster: Cluster) -> Self {
        let sessions = RefCell::new(vec![None; cluster.shards.len()]);
        Self { cluster, sessions }
    }
}

impl Links {
    /// No session is opened yet. `node` is the source shard that is this database.
    pub fn new(source: Cluster, destination: Cluster, node: ShardNo) -> Self {
        Self { node, source: Bundle::new(source), destination: Bundle::new(destination) }
    }

    /// The source shard that is this database.
    pub fn node(&self) -> ShardNo {
        self.node
    }

    /// The other shards of the source, with a session on each.
    ///
    /// # Errors
    /// As [`Links::session`]; the first one of all shards.
    pub async fn other_nodes(&self) -> Result<Vec<(ShardNo, Rc<Connection>)>> {
        let numbers: Vec<ShardNo> =
            self.cluster(Side::Source).numbers().filter(|n| *n != self.node).collect();
        try_join_all(
            numbers
                .into_iter()
                .map(|shard| async move { Ok((shard, self.session(Side::Source, shard).await?)) }),
        )
        .await
    }

    fn bundle(&self, side: Side) -> &Bundle {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// The cluster on that side.
    pub fn cluster(&self, side: Side) -> &Cluster {
        &self.bundle(side).cluster
    }

    /// All shards of both sides.
    pub fn all(&self) -> impl Iterator<Item = (Side, ShardNo)> + '_ {
        [Side::Source, Side::Destination]
            .into_iter()
            .flat_map(|side| self.cluster(side).numbers().map(move |shard| (side, shard)))
    }

    /// Where a shard is.
    ///
    /// # Errors
    /// XX000 where the cluster has no such shard.
    pub fn endpoint(&self, side: Side, shard: ShardNo) -> Result<&Endpoint> {
        let cluster = self.cluster(side);
        cluster.shards.get(shard.index()).ok_or_else(|| {
            Error::internal(format!("cluster \"{}\" has no shard {shard}", cluster.name))
        })
    }

    /// The session on one shard.
    ///
    /// # Errors
    /// Those of [`connect`].
    pub async fn session(&self, side: Side, shard: ShardNo) -> Result<Rc<Connection>> {
        let bundle = self.bundle(side);
        let kept = bundle.sessions.borrow().get(shard.index()).cloned().flatten();
        if let Some(session) = kept.filter(|s| !s.is_closed()) {
            return Ok(session);
        }
        let session = Rc::new(connect(self.endpoint(side, shard)?, Purpose::Control).await?);
        if let Some(place) = bundle.sessions.borrow_mut().get_mut(shard.index()) {
            *place = Some(Rc::clone(&session));
        }
        Ok(session)
    }

    /// The sessions on all shards of a side, by number.
    ///
    /// # Errors
    /// As [`Links::session`]; the first one of all shards.
    pub async fn sessions(&self, side: Side) -> Result<Vec<(ShardNo, Rc<Connection>)>> {
        let numbers: Vec<ShardNo> = self.cluster(side).numbers().collect();
        try_join_all(
            numbers
                .into_iter()
                .map(|shard| async move { Ok((shard, self.session(side, shard).await?)) }),
        )
        .await
    }

    /// The sessions on those shards of a side that can be reached; and why another can't,
    /// if one can't.
    pub async fn reachable(&self, side: Side) -> (Vec<Rc<Connection>>, Option<Error>) {
        let shards = self.cluster(side).numbers();
        let mut reached = Vec::new();
        let mut missing = None;
        for session in join_all(shards.map(|shard| self.session(side, shard))).await {
            match session {
                Ok(session) => reached.push(session),
                Err(error) => missing = missing.or(Some(error)),
            }
        }
        (reached, missing)
    }

    /// Does the same on all shards of a side at the same time, whatever becomes of
    /// the others.
    ///
    /// # Errors
    /// The first one by number, once all have ended.
    pub async fn each<Fut>(
        &self,
        side: Side,
        work: impl Fn(ShardNo, Rc<Connection>) -> Fut,
    ) -> Result<()>
    where
        Fut: Future<Output = Result<()>>,
    {
        let work = &work;
        let shards = self.cluster(side).numbers();
        join_all(shards.map(|n| async move { work(n, self.session(side, n).await?).await }))
            .await
            .into_iter()
            .collect()
    }

    /// Runs the same statements on all shards of a side at the same time.
    ///
    /// # Errors
    /// The first one of all shards.
    pub async fn batch(&self, side: Side, sql: &str) -> Result<()> {
        let sessions = self.sessions(side).await?;
        try_join_all(sessions.iter().map(|(_, session)| session.batch(sql))).await?;
        Ok(())
    }
}
