//! A cluster as declared: its name and its shards, in order.
use crate::cluster::placement::ShardNo;
use crate::error::{Error, Result};
use crate::remote::Endpoint;

/// A named set of shards, numbered 0..n-1 without a gap.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its shards; the index is the number.
    pub shards: Vec<Endpoint>,
}

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
        Ok(Self { name: name.to_owned(), shards })
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
    #![allow(clippy::unwrap_used)]
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
    fn no_shards_is_no_cluster() {
        assert_eq!(Cluster::new("c", vec![]).unwrap_err().sqlstate(), "42704");
    }
}
