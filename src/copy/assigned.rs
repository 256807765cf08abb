//! A part that another source shard was told to copy, in a backend of that shard
//! and in the transaction of the caller, who has imported the wave's snapshot.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::staying::Staying;
use crate::cluster::{Cluster, KeyMap, ShardNo};
use crate::copy::copier::{Copier, Outcome};
use crate::copy::part::Part;
use crate::error::{Error, Kind, Result};
use crate::pg::memory;
use crate::remote::{Conninfo, Endpoint};

/// What the coordinator says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// Tells the coordinator's database from others.
    pub(super) token: String,
    /// Its task.
    pub(super) task_id: i64,
    /// The wave.
    pub(super) wave: i32,
    /// The destination.
    pub(super) cluster: String,
    /// Connection strings of its shards, in order.
    pub(super) shards: Vec<String>,
    /// Which keys belong to which of them.
    pub(super) maps: BTreeMap<String, KeyMap>,
    /// Those that are shards of the source too.
    pub(super) staying: Staying,
    /// The shard of the source that is to copy.
    pub(super) node: ShardNo,
    /// What to copy.
    pub(super) part: Part,
}

/// What the coordinator is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Committed on all shards.
    Done {
        /// Rows, each counted once.
        rows: u64,
        /// Bytes as encoded, each row counted once.
        bytes: u64,
    },
    /// The table's file is another one than under the snapshot.
    Rewritten,
    /// The snapshot can't be imported any more.
    SnapshotLost,
    /// An error; nothing is known to have been committed.
    Failed(Failure),
}

/// An error on its way to another server.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    sqlstate: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            sqlstate: error.sqlstate().to_owned(),
            message: error.message,
            detail: error.detail,
            hint: error.hint,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self {
            kind: Kind::Server(failure.sqlstate),
            message: failure.message,
            detail: failure.detail,
            hint: failure.hint,
        }
    }
}

/// The copier of this backend, with its sessions on the shards, and what it is for.
struct Kept {
    key: (String, i64, i32, Vec<String>),
    /// A process that ends closes its sockets by itself; it must not wait for them.
    copier: ManuallyDrop<Copier>,
}

thread_local! {
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Copies a part for the coordinator. Sessions on the shards are kept for the next.
///
/// # Errors
/// 22023 where a connection string can't be read. An ERROR of the server is raised.
pub fn copy_assigned(assignment: Assignment) -> Result<Reply> {
    let Assignment { token, task_id, wave, cluster, shards, maps, staying, node, part } =
        assignment;
    let key = (token.clone(), task_id, wave, shards.clone());
    let kept = KEPT.with_borrow_mut(Option::take);
    let mut copier = match kept {
        Some(kept) if kept.key == key => ManuallyDrop::into_inner(kept.copier),
        other => {
            if let Some(kept) = other {
                ManuallyDrop::into_inner(kept.copier).close();
            }
            memory::keep_freed_blocks();
            let endpoints: Result<Vec<Endpoint>> = (0..)
                .zip(&shards)
                .map(|(shard, text)| {
                    let conninfo = Conninfo::parse(text)?;
                    Ok(Endpoint { cluster: cluster.clone(), shard, conninfo })
                })
                .collect();
            let maps = maps.into_iter().map(|(column, map)| (column, Arc::new(map))).collect();
            let destination =
                Cluster::new(&cluster, endpoints?)?.with_maps(maps).with_staying(staying);
            Copier::new(destination, node, token, task_id, wave, None)?
        }
    };
    // Raised errors pass by here and end the copier with all that it has begun.
    let outcome = copier.copy(&part);
    KEPT.with_borrow_mut(|kept| {
        *kept = Some(Kept { key, copier: ManuallyDrop::new(copier) });
    });
    Ok(match outcome {
        Outcome::Done { rows, bytes } => Reply::Done { rows, bytes },
        Outcome::Rewritten => Reply::Rewritten,
        Outcome::SnapshotLost => Reply::SnapshotLost,
        Outcome::Failed(error) => Reply::Failed(error.into()),
    })
}
