//! A chunk of a table on all servers that must agree about it: who takes part, and what
//! each is compared with.
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future::try_join_all;

use crate::cluster::{Direction, Placement, Side};
use crate::error::Result;
use crate::remote::Links;
use crate::state::flow::Flow;
use crate::state::table::Table;
use crate::state::verification::{Chunk, Findings};
use crate::verify::compare::Comparison;
use crate::verify::reading::{self, Digests, Party};
use crate::verify::rows::{range, Rows};
use crate::verify::server::{Conditions, Server};
use crate::verify::shape::Shape;
use crate::verify::timeline::Timeline;

/// What a chunk's comparison goes by.
pub(super) struct Job<'a> {
    pub(super) table: &'a Table,
    pub(super) shape: &'a Shape,
    pub(super) chunk: &'a Chunk,
    pub(super) timeline: &'a Timeline<'a>,
    /// The live flows that carry the table.
    pub(super) flows: &'a [Flow],
    /// Both clusters.
    pub(super) links: &'a Links,
    /// A session on every shard of both clusters.
    pub(super) servers: &'a [Server],
}

impl<'a> Job<'a> {
    /// Compares the chunk.
    ///
    /// # Errors
    /// As [`Comparison::run`].
    pub(super) async fn run(&self) -> Result<Findings> {
        let direction = self.timeline.direction;
        let (publisher, subscriber) = (direction.publisher(), direction.subscriber());
        let whole = self.chunk.key_after.is_none() && self.chunk.key_to.is_none();
        try_join_all(self.servers.iter().map(|server| server.fit(self.shape, whole))).await?;

        let (mut publishers, mut copies) = (Vec::new(), Vec::new());
        let first = self.on(publisher).next().map(|server| server.shard);
        for server in self.on(publisher) {
            let party = self.party(server).await?;
            let brings = match publisher {
                Side::Source => self.table.comes_from(server.shard),
                Side::Destination => {
                    self.table.is_sharded(publisher) || Some(server.shard) == first
                }
            };
            match brings {
                true => publishers.push(party),
                false => copies.push(party),
            }
        }
        // Clients write to a shard of both clusters themselves what every shard has.
        let apart = self.links.apart(subscriber);
        let is_omni = !self.table.is_sharded(publisher);
        let mut subscribers = Vec::new();
        for server in self.on(subscriber) {
            let party = self.party(server).await?;
            match is_omni && !apart.contains(&server.shard) {
                true => copies.push(party),
                false => subscribers.push(party),
            }
        }

        if publishers.is_empty() && !copies.is_empty() {
            // All shards are in both clusters: the first one is as good as any.
            publishers.push(copies.remove(0));
        }
        let (here, there, beside) =
            futures::try_join!(digests(&publishers), digests(&subscribers), digests(&copies))?;
        let mut found = Findings {
            rows: reading::total(&here).values().map(|d| d.rows).sum(),
            ..Findings::default()
        };
        if self.table.is_sharded(subscriber) {
            let comparison =
                self.comparison(&publishers, subscribers, self.flows, self.is_spread(subscriber));
            comparison.run(&here, &there, &mut found).await?;
        } else {
            for (one, digests) in subscribers.into_iter().zip(there) {
                let comparison = self.comparison(&publishers, vec![one], self.flows, false);
                comparison.run(&here, &[digests], &mut found).await?;
            }
        }
        // Other copies of the table on the active side: nothing flows between them.
        for (one, digests) in copies.into_iter().zip(beside) {
            let comparison = self.comparison(&publishers, vec![one], &[], false);
            comparison.run(&here, &[digests], &mut found).await?;
        }
        Ok(found)
    }

    fn comparison(
        &self,
        publishers: &[Party<'a>],
        subscribers: Vec<Party<'a>>,
        flows: &'a [Flow],
        spread: bool,
    ) -> Comparison<'a> {
        Comparison {
            publishers: publishers.to_vec(),
            subscribers,
            flows,
            spread,
            shape: self.shape,
            timeline: self.timeline,
        }
    }

    /// The servers of a side: of a table that every shard has, a shard of both clusters is one
    /// of the source.
    fn on(&self, side: Side) -> impl Iterator<Item = &'a Server> + use<'a, '_> {
        let is_whole = !self.table.is_sharded(Side::Destination);
        let counts = move |server: &Server| {
            !(is_whole && side == Side::Destination && self.links.cluster(side).stays(server.shard))
        };
        self.servers.iter().filter(move |server| server.side == side && counts(server))
    }

    /// The rows of a shard of both clusters that have to be on another one: as one of the
    /// source those that are not its own on the destination, and the other way round.
    fn moving(&self, server: &Server, conditions: &BTreeMap<Side, Conditions>) -> Option<String> {
        if !self.table.is_sharded(Side::Destination) {
            return None;
        }
        let staying = &self.links.cluster(Side::Destination).staying;
        let (other, own) = match server.side {
            Side::Source => (Side::Destination, staying.of_node(server.shard)?),
            Side::Destination => (Side::Source, *staying.shards.get(&server.shard)?),
        };
        // Where the other cluster is one shard, all rows are its own.
        Some(match conditions.get(&other).and_then(|of| of.get(own.index())) {
            Some(own) => format!("NOT {own}"),
            None => "false".to_owned(),
        })
    }

    /// Whether each shard of a side has a part of the table.
    fn is_spread(&self, side: Side) -> bool {
        self.links.cluster(side).placement(self.table.sharding_key(side)) != Placement::All
    }

    /// How the table is read on a server.
    async fn party(&self, server: &'a Server) -> Result<Party<'a>> {
        let relation = self.table.qualified();
        let other = match server.side {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        };
        let (mut placed, mut target) = (None, None);
        let mut of_sides = BTreeMap::new();
        for side in [server.side, other] {
            let Some(key) = self.table.sharding_key(side) else { continue };
            let cluster = self.links.cluster(side);
            let placement = cluster.placement(Some(key));
            if placement == Placement::All {
                continue;
            }
            let conditions =
                server.placement(&relation, key.columns, side, cluster, &placement).await?;
            of_sides.insert(side, Rc::clone(&conditions));
            if side == server.side {
                placed = conditions.get(server.shard.index()).cloned();
            } else {
                target = Some(which(&conditions));
            }
        }
        // The source has rows that the filter keeps back, and others than the destination,
        // which has some once it is written to.
        let filtered = server.side == Side::Source || self.timeline.direction == Direction::Reverse;
        let chunk = self.chunk;
        let rows =
            Rows {
                relation,
                shape: self.shape,
                filter: self.table.row_filter.as_deref().filter(|_| filtered),
                moving: self.moving(server, &of_sides),
                range: self.shape.key.as_ref().and_then(|key| {
                    range(key, chunk.key_after.as_deref(), chunk.key_to.as_deref())
                }),
                placed,
                target,
            };
        Ok(Party { server, rows })
    }
}

/// The number of the first condition that holds.
fn which(conditions: &[String]) -> String {
    let cases: Vec<String> = conditions
        .iter()
        .enumerate()
        .map(|(shard, condition)| format!("WHEN {condition} THEN {shard}"))
        .collect();
    format!("CASE {} END", cases.join(" "))
}

async fn digests(parties: &[Party<'_>]) -> Result<Vec<Digests>> {
    try_join_all(parties.iter().map(|party| reading::digests(party, 1))).await
}
