//! A cluster as declared: its name, its shards in order, and which keys are mapped to them.
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::keymap::{KeyMap, Keys};
use crate::cluster::placement::{Placement, ShardNo};
use crate::cluster::rule::{Method, ShardingKey};
use crate::cluster::staying::Staying;
use crate::error::{Error, Result};
use crate::remote::Endpoint;

/// A named set of shards, numbered 0..n-1 without a gap.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its shards; the index is the number.
    pub shards: Vec<Endpoint>,
    /// Which keys belong to which shard, for columns that are placed by list or range.
    pub maps: KeyMaps,
    /// Of a destination: its shards that are shards of the source too.
    pub staying: Staying,
}

/// By column.
pub type KeyMaps = BTreeMap<String, Arc<KeyMap>>;

impl Cluster {
    /// A cluster of the declared shards.
    ///
    /// # Errors
    /// 42704 where there is none, 55000 where a number is missing.
    pub fn new(name: &str, mut shards: Vec<Endpoint>) -> Result<Self> {
        if shards.is_empty() {
            return Err(Error::missing(format!("cluster \"{name}\" does not exist")).hint(
                format!(
                "Declare its shards: SELECT reshard_add_shard('{name}', 0, 'host=... dbname=...');"
            ),
            ));
        }
        shards.sort_by_key(|s| s.shard);
        if let Some(gap) = (0..).zip(&shards).find(|(i, s)| s.shard != *i).map(|(i, _)| i) {
            let have: Vec<String> = shards.iter().map(|s| s.shard.to_string()).collect();
            return Err(Error::state(format!("shard {gap} of cluster \"{name}\" is missing"))
                .detail(format!(
                    "Shards are numbered from 0 without a gap; declared are {}.",
                    have.join(", ")
                ))
                .hint(format!(
                    "Declare it: SELECT reshard_add_shard('{name}', {gap}, 'host=... dbname=...');"
                )));
        }
        Ok(Self {
            name: name.to_owned(),
            shards,
            maps: KeyMaps::new(),
            staying: Staying::default(),
        })
    }

    /// The same cluster with mapped keys.
    pub fn with_maps(self, maps: KeyMaps) -> Self {
        Self { maps, ..self }
    }

    /// The same cluster, some of whose shards stay.
    pub fn with_staying(self, staying: Staying) -> Self {
        Self { staying, ..self }
    }

    /// Whether a shard is one of the source too.
    pub fn stays(&self, shard: ShardNo) -> bool {
        self.staying.shards.contains_key(&shard)
    }

    /// Its shards that are not of the source.
    pub fn joining(&self) -> impl Iterator<Item = &Endpoint> {
        self.shards.iter().filter(|s| !self.stays(ShardNo(s.shard)))
    }

    /// How the rows of a table spread that has this sharding key.
    pub fn placement(&self, key: Option<ShardingKey<'_>>) -> Placement {
        let Some(key) = key.filter(|_| self.size() > 1) else { return Placement::All };
        if key.method == Method::Hash {
            return Placement::Hash { shards: self.size() };
        }
        let mapped = key.single().and_then(|column| self.maps.get(column));
        Placement::Mapped(mapped.cloned().unwrap_or_else(|| {
            let keys = match key.method {
                Method::Range => Keys::Ranges(Vec::new()),
                _ => Keys::Values(Vec::new()),
            };
            Arc::new(KeyMap { keys, null: None, default: None })
        }))
    }

    /// Number of shards.
    pub fn size(&self) -> u32 {
        self.shards.len() as u32
    }

    /// The numbers of its shards.
    pub fn numbers(&self) -> impl Iterator<Item = ShardNo> + '_ {
        self.shards.iter().map(|s| ShardNo(s.shard))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::remote::Conninfo;

    fn endpoint(shard: u32) -> Endpoint {
        Endpoint {
            cluster: "c".into(),
            shard,
            conninfo: Conninfo::parse("host=h dbname=d").unwrap(),
        }
    }

    #[test]
    fn shards_are_sorted_and_complete() {
        let cluster = Cluster::new("c", vec![endpoint(1), endpoint(0)]).unwrap();
        assert_eq!(cluster.size(), 2);
        assert_eq!(cluster.shards[1].shard, 1);
    }

    #[test]
    fn a_gap_is_named() {
        let error = Cluster::new("c", vec![endpoint(0), endpoint(2)]).unwrap_err();
        assert_eq!(error.message, "shard 1 of cluster \"c\" is missing");
        assert_eq!(error.sqlstate(), "55000");
    }

    #[test]
    fn one_shard_has_all_rows() {
        let columns = ["k".to_owned()];
        let key = |method| Some(ShardingKey { columns: &columns, method });
        let one = Cluster::new("c", vec![endpoint(0)]).unwrap();
        assert_eq!(one.placement(key(Method::List)), Placement::All);
        let two = Cluster::new("c", vec![endpoint(0), endpoint(1)]).unwrap();
        assert_eq!(two.placement(key(Method::Hash)), Placement::Hash { shards: 2 });
        let Placement::Mapped(map) = two.placement(key(Method::List)) else {
            panic!("not by list")
        };
        assert_eq!(map.shards().count(), 0);
    }

    #[test]
    fn no_shards_is_no_cluster() {
        assert_eq!(Cluster::new("c", vec![]).unwrap_err().sqlstate(), "42704");
    }
}
