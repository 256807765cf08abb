//! A session on one shard that compares rows: settings under which a value has the
//! same text everywhere, and what placements refer to.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::cluster::{ShardNo, Side};
use crate::error::{Error, Result};
use crate::remote::quote::ident;
use crate::remote::{connect, Connection, Endpoint, Purpose};
use crate::verify::placement;
use crate::verify::shape::Shape;

/// Beside what every connection of ours sets. A session whose worker is gone ends
/// within seconds; none of them takes more than one processor.
const SETTINGS: &str = "SET lc_monetary = 'C'; SET quote_all_identifiers = off; \
     SET client_connection_check_interval = '2s'; SET max_parallel_workers_per_gather = 0; \
     SET default_transaction_isolation = 'read committed'; SET enable_seqscan = off";

/// A shard with a session that reads from it.
pub(super) struct Server {
    pub(super) side: Side,
    pub(super) shard: ShardNo,
    /// Name of its cluster.
    pub(super) cluster: String,
    pub(super) session: Connection,
    scans: Cell<bool>,
    path: RefCell<String>,
    /// Relations that stand for placements, by what they stand for.
    placements: RefCell<HashMap<String, String>>,
}

impl Server {
    /// Opens a session.
    ///
    /// # Errors
    /// Those of [`connect`].
    pub(super) async fn open(side: Side, endpoint: &Endpoint) -> Result<Self> {
        let session = connect(endpoint, Purpose::Verify).await?;
        session.batch(SETTINGS).await?;
        Ok(Self {
            side,
            shard: ShardNo(endpoint.shard),
            cluster: endpoint.cluster.clone(),
            session,
            scans: Cell::new(false),
            path: RefCell::default(),
            placements: RefCell::default(),
        })
    }

    /// Makes the session fit for a table: its key's operators are found, and it is read
    /// as a whole only where all of it is meant.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn fit(&self, shape: &Shape, whole: bool) -> Result<()> {
        if self.scans.get() != whole {
            self.session
                .batch(if whole { "SET enable_seqscan = on" } else { "SET enable_seqscan = off" })
                .await?;
            self.scans.set(whole);
        }
        let path: String =
            shape.operator_schemas().iter().map(|schema| format!(", {}", ident(schema))).collect();
        if *self.path.borrow() != path {
            self.session.batch(&format!("SET search_path = pg_catalog{path}")).await?;
            self.path.replace(path);
        }
        Ok(())
    }

    /// The condition that a row `t` of a table belongs to each of `shards` shards.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn placement(
        &self,
        table: &str,
        key: &str,
        shards: u32,
    ) -> Result<Vec<String>> {
        let what = format!("{table} {key}");
        let known = self.placements.borrow().get(&what).cloned();
        let parent = match known {
            Some(parent) => parent,
            None => {
                let parent = placement::parent(&self.session, table, key).await?;
                self.placements.borrow_mut().insert(what, parent.clone());
                parent
            }
        };
        Ok((0..shards)
            .map(|shard| {
                placement::condition(&parent, shards, ShardNo(shard), &format!("t.{}", ident(key)))
            })
            .collect())
    }

    /// An error that says on which shard a value could not be read.
    pub(super) fn error(&self, error: &tokio_postgres::Error) -> Error {
        self.session.error(error)
    }
}
