//! A session on one shard that compares rows: settings under which a value has the
//! same text everywhere, and what placements refer to.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use crate::cluster::{Cluster, Placement, ShardNo, Side};
use crate::error::{Error, Result};
use crate::remote::quote::ident;
use crate::remote::{connect, Connection, Endpoint, Purpose};
use crate::verify::placement;
use crate::verify::shape::Shape;

/// Beside what every connection of ours sets. A session whose worker is gone ends
/// within seconds; none of them takes more than one processor.
const SETTINGS: &str = "SET lc_monetary = 'C'; SET quote_all_identifiers = off; \
     SET client_connection_check_interval = '2s'; SET max_parallel_workers_per_gather = 0; \
     SET enable_seqscan = off";

/// Conditions of all shards of a side.
pub(super) type Conditions = Rc<Vec<String>>;

/// A shard with a session that reads from it.
pub(super) struct Server {
    pub(super) side: Side,
    pub(super) shard: ShardNo,
    /// Name of its cluster.
    pub(super) cluster: String,
    pub(super) session: Connection,
    scans: Cell<bool>,
    path: RefCell<String>,
    /// Placements on either side, by table.
    placements: RefCell<HashMap<(bool, String), Conditions>>,
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

    /// The conditions that a row `t` of a table belongs to each shard of a side.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn placement(
        &self,
        table: &str,
        key: &[String],
        side: Side,
        cluster: &Cluster,
        placement: &Placement,
    ) -> Result<Conditions> {
        let what = (side == Side::Source, table.to_owned());
        if let Some(known) = self.placements.borrow().get(&what) {
            return Ok(Rc::clone(known));
        }
        let conditions = Rc::new(
            placement::conditions(&self.session, table, key, placement, cluster.size()).await?,
        );
        self.placements.borrow_mut().insert(what, Rc::clone(&conditions));
        Ok(conditions)
    }

    /// An error that says on which shard a value could not be read.
    pub(super) fn error(&self, error: &tokio_postgres::Error) -> Error {
        self.session.error(error)
    }
}
