//! The control sessions of one migration: one to each shard of both clusters,
//! opened when first needed and again when lost.
//!
//! A shard that is in both clusters counts as one of the source: what is done on all
//! shards of a side leaves it out on the destination. Where it counts for both, at the
//! switch, that is [`Links::members`].
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

    /// The shards of a side: of the destination those that join the source.
    pub fn numbers(&self, side: Side) -> Vec<ShardNo> {
        let cluster = self.cluster(side);
        cluster.numbers().filter(|shard| !cluster.stays(*shard)).collect()
    }

    /// The shards of a cluster that are not in the other one.
    pub fn apart(&self, side: Side) -> Vec<ShardNo> {
        let staying = &self.destination.cluster.staying;
        let stays = |shard: &ShardNo| match side {
            Side::Source => staying.of_node(*shard).is_some(),
            Side::Destination => staying.shards.contains_key(shard),
        };
        self.cluster(side).numbers().filter(|shard| !stays(shard)).collect()
    }

    /// The shards of a cluster that are ends of flows: of the destination also those that
    /// stay, where rows come to them.
    pub fn ends(&self, side: Side) -> Vec<ShardNo> {
        match self.destination.cluster.staying.receive {
            true => self.cluster(side).numbers().collect(),
            false => self.numbers(side),
        }
    }

    /// The ends of flows of both sides.
    pub fn all_ends(&self) -> impl Iterator<Item = (Side, ShardNo)> + '_ {
        [Side::Source, Side::Destination]
            .into_iter()
            .flat_map(|side| self.ends(side).into_iter().map(move |shard| (side, shard)))
    }

    /// All shards of both sides.
    pub fn all(&self) -> impl Iterator<Item = (Side, ShardNo)> + '_ {
        [Side::Source, Side::Destination]
            .into_iter()
            .flat_map(|side| self.numbers(side).into_iter().map(move |shard| (side, shard)))
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
        self.sessions_on(side, self.numbers(side)).await
    }

    /// The sessions on all shards of a cluster, those that are in both included.
    ///
    /// # Errors
    /// As [`Links::sessions`].
    pub async fn members(&self, side: Side) -> Result<Vec<(ShardNo, Rc<Connection>)>> {
        self.sessions_on(side, self.cluster(side).numbers().collect()).await
    }

    /// The sessions on all ends of flows of a side, by number.
    ///
    /// # Errors
    /// As [`Links::sessions`].
    pub async fn sessions_at_ends(&self, side: Side) -> Result<Vec<(ShardNo, Rc<Connection>)>> {
        self.sessions_on(side, self.ends(side)).await
    }

    async fn sessions_on(
        &self,
        side: Side,
        shards: Vec<ShardNo>,
    ) -> Result<Vec<(ShardNo, Rc<Connection>)>> {
        let opened = shards
            .into_iter()
            .map(|shard| async move { Ok((shard, self.session(side, shard).await?)) });
        try_join_all(opened).await
    }

    /// The sessions on those shards of a side that can be reached; and why another can't,
    /// if one can't.
    pub async fn reachable(&self, side: Side) -> (Vec<(ShardNo, Rc<Connection>)>, Option<Error>) {
        let shards = self.numbers(side);
        let mut reached = Vec::new();
        let mut missing = None;
        let sessions = join_all(shards.iter().map(|shard| self.session(side, *shard))).await;
        for (shard, session) in shards.iter().zip(sessions) {
            match session {
                Ok(session) => reached.push((*shard, session)),
                Err(error) => missing = missing.or(Some(error)),
            }
        }
        (reached, missing)
    }

    /// Does the same on some shards of a cluster at the same time, whatever becomes of
    /// the others.
    ///
    /// # Errors
    /// The first one in their order, once all have ended.
    pub async fn each<Fut>(
        &self,
        side: Side,
        shards: Vec<ShardNo>,
        work: impl Fn(ShardNo, Rc<Connection>) -> Fut,
    ) -> Result<()>
    where
        Fut: Future<Output = Result<()>>,
    {
        let (work, shards) = (&work, shards.into_iter());
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
