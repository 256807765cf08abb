//! How far index builds on a shard are, from its own progress view.
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::error::Result;
use crate::remote::{self, Connection, Endpoint, Purpose};

/// Phases of `pg_stat_progress_create_index` (manual, "CREATE INDEX Progress
/// Phases") as one number: a btree scans the table, then loads what it sorted.
const PROGRESS: &str = "SELECT CASE \
     WHEN p.phase LIKE '%scanning table' THEN 60 * p.blocks_done / nullif(p.blocks_total, 0)::float8 \
     WHEN p.phase LIKE '%sorting%' THEN 60 \
     WHEN p.phase LIKE '%loading tuples%' \
         THEN 60 + 40 * p.tuples_done / nullif(p.tuples_total, 0)::float8 \
     WHEN p.phase = 'building index' THEN 100 * coalesce( \
         p.blocks_done / nullif(p.blocks_total, 0)::float8, \
         p.tuples_done / nullif(p.tuples_total, 0)::float8) END::float8, p.phase \
   FROM pg_stat_progress_create_index AS p WHERE p.pid = $1";

/// A build as its server tells it.
pub struct Progress {
    /// None in phases that can't be measured.
    pub percent: Option<f64>,
    /// The server's words, as `building index: scanning table`.
    pub phase: String,
}

/// A shard's session for looking at the others.
pub struct Monitor {
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Monitor {
    /// Connects at its first use.
    pub fn new() -> Self {
        Self { connection: Mutex::new(None) }
    }

    /// How far the index is that the session of this process number builds; none
    /// where it builds none.
    ///
    /// # Errors
    /// The shard's, or no connection.
    pub async fn of(&self, shard: &Endpoint, pid: i32) -> Result<Option<Progress>> {
        let connection = self.connection(shard).await?;
        let rows = connection.query(PROGRESS, &[&pid]).await?;
        let get = |e: tokio_postgres::Error| connection.error(&e);
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Progress {
            percent: row.try_get(0).map_err(get)?,
            phase: row.try_get(1).map_err(get)?,
        }))
    }

    async fn connection(&self, shard: &Endpoint) -> Result<Arc<Connection>> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|c| !c.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        let opened = Arc::new(remote::connect(shard, Purpose::Schema).await?);
        *held = Some(Arc::clone(&opened));
        Ok(opened)
    }
}
