//! What a verify worker does: cuts tables into chunks and compares them, several at a
//! time, each in sessions of its own. All that it knows is in the state tables; chunks
//! that are compared stay so.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use crate::cluster::{Direction, ShardNo, Side};
use crate::error::{Error, Policy, Result};
use crate::gucs;
use crate::pg::runtime;
use crate::pg::xact::{transaction, transaction_async};
use crate::remote::{Connection, Links};
use crate::state::event::{self, Severity};
use crate::state::flow::{self, Flow};
use crate::state::table::{self, Table};
use crate::state::task::{self, Task};
use crate::state::verification::{self, Chunk};
use crate::state::{cluster, verification as record};
use crate::verify::chunk::Job;
use crate::verify::cut;
use crate::verify::server::Server;
use crate::verify::shape::Shape;
use crate::verify::timeline::Timeline;

/// Tries of one chunk.
const TRIES: u32 = 8;

/// Compares what is left of a task. An error is written to the task.
///
/// # Errors
/// Those of the state tables.
pub fn work(task_id: i64) -> Result<()> {
    let runtime = runtime::build()?;
    let outcome = runtime::block_on(&runtime, run(task_id), || ());
    runtime.shutdown_background();
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => transaction(|| task::note_error(task_id, Some(&error))),
    }
}

async fn run(task_id: i64) -> Result<()> {
    let (task, migration, links) = transaction(|| {
        let task = task::load(task_id)?;
        let parent = task.parent_id.ok_or_else(|| Error::internal("a comparison has no parent"))?;
        let migration = task::load(parent)?;
        let (source, destination) = cluster::of_task(&migration)?;
        let links = Links::new(source, destination, ShardNo(migration.options.node));
        record::release(task_id)?;
        Ok((task, migration, links))
    })?;
    let tables = transaction(|| table::load(migration.id))?;
    let worker = Worker {
        task,
        migration,
        links,
        tables: tables.into_iter().map(|t| (t.table_id, t)).collect(),
        shapes: RefCell::default(),
        paid_until: Cell::new(Instant::now()),
    };
    Timeline::now(&worker.links, task_id, worker.migration.id).await?;
    worker.cut().await?;
    let lanes = usize::try_from(gucs::MAX_VERIFY_SESSIONS.get()).unwrap_or(1).max(1);
    try_join_all((0..lanes).map(|_| worker.lane())).await.map(drop)
}

struct Worker {
    task: Task,
    migration: Task,
    links: Links,
    /// Those of the migration.
    tables: HashMap<i32, Table>,
    shapes: RefCell<HashMap<i32, Rc<Shape>>>,
    /// When all that was read is paid for, under `reshard.verify_rate_limit`.
    paid_until: Cell<Instant>,
}

impl Worker {
    fn table(&self, id: i32) -> Result<&Table> {
        self.tables
            .get(&id)
            .ok_or_else(|| Error::internal(format!("table {id} is no part of the migration")))
    }

    /// Cuts the tables that are not cut yet.
    async fn cut(&self) -> Result<()> {
        let all = transaction(|| record::tables(self.task.id))?;
        let sessions = self.servers().await?;
        let every: Vec<&Connection> = sessions.iter().map(|s| &s.session).collect();
        let sample = self.task.options.sample_percent.unwrap_or(100.0);
        for one in all.into_iter().filter(|t| t.chunks.is_none()) {
            let table = self.table(one.table_id)?;
            let shape = self.shape(table).await?;
            let nodes: Vec<&Connection> = sessions
                .iter()
                .filter(|s| s.side == Side::Source && table.comes_from(s.shard))
                .map(|s| &s.session)
                .collect();
            cut::cut(self.task.id, table, &shape, &nodes, &every, sample).await?;
        }
        Ok(())
    }

    /// How a table is compared.
    async fn shape(&self, table: &Table) -> Result<Rc<Shape>> {
        if let Some(shape) = self.shapes.borrow().get(&table.table_id) {
            return Ok(Rc::clone(shape));
        }
        let session = self.links.session(Side::Source, self.links.node()).await?;
        let shape = Rc::new(Shape::load(&session, table).await?);
        self.shapes.borrow_mut().insert(table.table_id, Rc::clone(&shape));
        Ok(shape)
    }

    /// A session on each shard of both clusters; one that is in both counts for the destination
    /// where rows come to it.
    async fn servers(&self) -> Result<Vec<Server>> {
        try_join_all(self.links.all_ends().map(|(side, shard)| async move {
            Server::open(side, self.links.endpoint(side, shard)?).await
        }))
        .await
    }

    /// Compares one chunk after the other until none is left.
    async fn lane(&self) -> Result<()> {
        let mut servers = Vec::new();
        while let Some(chunk) = transaction_async(|| record::claim(self.task.id))? {
            self.wait_for_rate().await;
            let mut tries = 0;
            loop {
                tries += 1;
                match self.compare(&chunk, &mut servers).await {
                    Ok(()) => break,
                    Err(error) if error.policy() == Policy::Retry && tries < TRIES => {
                        self.note(&chunk, &error)?;
                        servers.clear();
                        tokio::time::sleep(Duration::from_millis(250) * 2_u32.pow(tries.min(5)))
                            .await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn compare(&self, chunk: &Chunk, servers: &mut Vec<Server>) -> Result<()> {
        if servers.is_empty() {
            *servers = self.servers().await?;
        }
        let timeline = Timeline::now(&self.links, self.task.id, self.migration.id).await?;
        let table = self.table(chunk.table_id)?;
        let shape = self.shape(table).await?;
        let flows = self.flows(table, timeline.direction)?;
        let job = Job {
            table,
            shape: &shape,
            chunk,
            timeline: &timeline,
            flows: &flows,
            links: &self.links,
            servers,
        };
        let found = job.run().await?;
        timeline.refuse_switched()?;
        self.book(chunk.bytes);
        transaction_async(|| verification::finish_chunk(self.task.id, chunk, &found))
    }

    /// The flows that bring a table's changes to the other side.
    fn flows(&self, table: &Table, direction: Direction) -> Result<Vec<Flow>> {
        let flows = transaction(|| flow::load_direction(self.migration.id, direction))?;
        Ok(flows
            .into_iter()
            .filter(|f| direction == Direction::Reverse || Some(f.wave) == table.wave)
            .collect())
    }

    fn book(&self, bytes: i64) {
        let rate = i64::from(gucs::VERIFY_RATE_LIMIT.get()) * 1024;
        if rate > 0 {
            let from = self.paid_until.get().max(Instant::now());
            self.paid_until.set(from + Duration::from_secs_f64(bytes as f64 / rate as f64));
        }
    }

    async fn wait_for_rate(&self) {
        // In steps, so that another limit counts at once.
        while gucs::VERIFY_RATE_LIMIT.get() > 0 {
            let wait = self.paid_until.get().saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return;
            }
            tokio::time::sleep(wait.min(Duration::from_millis(500))).await;
        }
    }

    fn note(&self, chunk: &Chunk, error: &Error) -> Result<()> {
        let table = self.table(chunk.table_id)?;
        transaction(|| {
            event::write(
                Some(self.task.id),
                Severity::Warning,
                "retry",
                &format!(
                    "chunk {} of table {}: {}",
                    chunk.chunk_no,
                    table.qualified(),
                    error.one_line()
                ),
                serde_json::json!({ "sqlstate": error.sqlstate() }),
            )
        })
    }
}
