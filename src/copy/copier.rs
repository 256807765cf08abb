//! Copies parts: scans each once in this process, sends each row to its shard.
//!
//! The scan is synchronous and owns the main thread. Whenever a chunk is full,
//! the runtime gets a turn; a shard that is slow only stops the scan when the
//! worker's memory is used up. While the shards commit one part, the next one can
//! be scanned: [`Copier::send`] returns before the commit, [`Copier::settle`] after.
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::cluster::{rule, Cluster, Placement, ShardNo};
use crate::copy::buffers::Budget;
use crate::copy::courier::Courier;
use crate::copy::load::{Job, Load};
use crate::copy::part::Part;
use crate::error::{Error, Kind, Result};
use crate::gucs;
use crate::pg::db::{self, Arg};
use crate::pg::encode::{Encoder, Format, Overflow, BINARY_HEADER, BINARY_TRAILER};
use crate::pg::hash::KeyHash;
use crate::pg::order::KeySearch;
use crate::pg::progress::{self, Meter};
use crate::pg::scan::{Attribute, Row, Scan, Table};
use crate::pg::{interrupt, runtime, xact};
use crate::remote::Endpoint;

/// Chunks are not larger than this, in bytes.
const LARGEST_CHUNK: usize = 256 * 1024;
/// Chunks are not smaller than this, in bytes.
const SMALLEST_CHUNK: usize = 16 * 1024;
/// Rows after which the progress is told.
const TELL_EVERY: u64 = 1024;
/// The longest time between two looks at the rate limit.
const LOOK_AT_LIMIT: Duration = Duration::from_millis(200);

/// How a part ended.
pub(super) enum Outcome {
    /// Committed on all shards.
    Done {
        /// Rows, each counted once.
        rows: u64,
        /// Bytes as encoded, each row counted once.
        bytes: u64,
    },
    /// The snapshot can't be imported any more.
    SnapshotLost,
    /// The table's file is another one than under the snapshot.
    Rewritten,
    /// An error; nothing is known to have been committed.
    Failed(Error),
}

enum Scanned {
    Rows { rows: u64, bytes: u64 },
    Rewritten,
}

/// A part that has been scanned, well or not. What its rows have come to, only
/// [`Copier::settle`] knows.
pub(super) struct Sent {
    scanned: Result<Scanned>,
    imported: bool,
    ends: Vec<oneshot::Receiver<Result<()>>>,
}

impl Sent {
    /// Whether all its rows are on their way.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.scanned, Ok(Scanned::Rows { .. }))
    }
}

/// Copies parts one after the other, over sessions that are kept.
pub(super) struct Copier {
    runtime: Runtime,
    destination: Cluster,
    /// The source shard that is scanned.
    node: ShardNo,
    /// Of the shards that rows come to from there, in order.
    couriers: Vec<Courier>,
    /// By shard, the number of its courier; none where rows stay on the shard that is scanned.
    ways: Vec<Option<usize>>,
    budget: Arc<Budget>,
    meter: Meter,
    token: String,
    task_id: i64,
    wave: i32,
    snapshot: Option<String>,
}

impl Copier {
    /// A copier for a wave of a task. Opens no connection yet. Without a snapshot the
    /// caller's transaction has it.
    ///
    /// # Errors
    /// The runtime could not be started.
    pub(super) fn new(
        destination: Cluster,
        node: ShardNo,
        token: String,
        task_id: i64,
        wave: i32,
        snapshot: Option<String>,
    ) -> Result<Self> {
        let limit = usize::try_from(gucs::COPY_BUFFER.get()).unwrap_or(32 * 1024) * 1024;
        let goes = |e: &&Endpoint| destination.staying.has_flow(node, ShardNo(e.shard));
        let takers: Vec<Endpoint> = destination.shards.iter().filter(goes).cloned().collect();
        let way = |e| takers.iter().position(|taker: &Endpoint| taker.shard == e);
        let ways = destination.numbers().map(|shard| way(shard.0)).collect();
        let chunk = (limit / 4 / takers.len().max(1)).clamp(SMALLEST_CHUNK, LARGEST_CHUNK);
        let runtime = runtime::build()?;
        Ok(Self {
            couriers: takers.into_iter().map(|e| Courier::start(&runtime, e)).collect(),
            ways,
            runtime,
            destination,
            node,
            budget: Budget::new(limit, chunk),
            meter: Meter::take(),
            token,
            task_id,
            wave,
            snapshot,
        })
    }

    /// Ends all sessions.
    pub(super) fn close(self) {
        self.meter.leave();
        drop(self.couriers);
        self.runtime.shutdown_background();
    }

    /// Copies a part to all shards.
    pub(super) fn copy(&mut self, part: &Part) -> Outcome {
        let sent = self.send(part);
        self.settle(sent)
    }

    /// Scans a part and sends its rows; the shards may still be at it afterwards, or
    /// at a part that was sent before.
    pub(super) fn send(&mut self, part: &Part) -> Sent {
        self.meter.begin(self.task_id, part.table_id, part.part_no);
        let (senders, ends) = self.start(part);
        let mut imported = false;
        let scan = || {
            imported = true;
            self.scan(part, senders)
        };
        let scanned = match &self.snapshot {
            Some(snapshot) => xact::transaction_with_snapshot(snapshot, scan),
            None => scan(),
        };
        self.meter.end();
        Sent { scanned, imported, ends }
    }

    /// Waits until all shards have committed what was sent, or given it up.
    pub(super) fn settle(&self, sent: Sent) -> Outcome {
        // All senders are gone by now: each shard has its end or gives up.
        let ends = runtime::block_on(&self.runtime, join_all(sent.ends), || ());
        let cause = ends.into_iter().fold(None, |cause, end| {
            let end = end.unwrap_or_else(|_| Err(Error::internal("a copy stopped half-way")));
            more_telling(cause, end.err())
        });
        match sent.scanned {
            Err(error) if !sent.imported && is_lost_snapshot(&error) => Outcome::SnapshotLost,
            Err(error) => Outcome::Failed(
                more_telling(Some(error), cause)
                    .unwrap_or_else(|| Error::internal("a copy failed without an error")),
            ),
            Ok(Scanned::Rewritten) => Outcome::Rewritten,
            Ok(Scanned::Rows { rows, bytes }) => match cause {
                Some(error) => Outcome::Failed(error),
                None => Outcome::Done { rows, bytes },
            },
        }
    }

    /// Has every shard begin: its session, transaction and COPY come up while
    /// the scan runs already.
    fn start(
        &self,
        part: &Part,
    ) -> (Vec<UnboundedSender<Load>>, Vec<oneshot::Receiver<Result<()>>>) {
        let job = Arc::new(Job {
            copy: Job::copy_statement(&part.name(), &part.columns, part.format()),
            token: self.token.clone(),
            task_id: self.task_id,
            wave: self.wave,
            table_id: part.table_id,
            part_no: part.part_no,
            again: part.again,
        });
        self.couriers.iter().map(|courier| courier.load(Arc::clone(&job))).unzip()
    }

    fn scan(&self, part: &Part, senders: Vec<UnboundedSender<Load>>) -> Result<Scanned> {
        let under_snapshot = db::bigint(
            "SELECT c.relfilenode::bigint FROM pg_catalog.pg_class AS c WHERE c.oid = $1",
            &[Arg::I64(i64::from(part.relation))],
        )?;
        let Some(table) = Table::open(part.relation) else { return Ok(Scanned::Rewritten) };
        if under_snapshot != Some(i64::from(table.filenode())) {
            return Ok(Scanned::Rewritten);
        }
        let placement = self.destination.placement(part.key());
        let mut columns = part.columns.clone();
        if placement != Placement::All {
            // Last, for the placement alone.
            columns.extend(part.key_columns.iter().flatten().cloned());
        }
        let mut scan =
            Scan::begin(&table, &part.name(), &columns, part.blocks(), part.row_filter.as_deref())?;
        let format = part.format();
        let copied = &scan.attributes()[..part.columns.len()];
        let encoder = Encoder::new(copied, format)?;
        let key = &scan.attributes()[part.columns.len()..];
        let router = Router::new(&placement, key, encoder.scratch())?;
        let is_omni = part.key().is_none();
        let mut outlets = Outlets::new(self, is_omni, senders, format);
        let first = part.blocks().from;
        let mut rows = 0;
        while let Some(row) = scan.next() {
            let shard = match router.route(row) {
                Some(shard) => shard,
                None => return Err(self.unplaced(part, &router, row)),
            };
            let Some(outlet) = outlets.of(shard) else {
                self.refuse_lost(part, shard)?;
                continue;
            };
            if !outlets.append(outlet, &encoder, row) {
                // The shard's own error says why.
                return Err(Error::new(Kind::Cancelled, "copy was given up"));
            }
            rows += 1;
            if rows % TELL_EVERY == 0 {
                self.meter.set(rows, outlets.bytes(), u64::from(row.block().saturating_sub(first)));
            }
            encoder.reset();
        }
        scan.end();
        drop(table);
        let bytes = outlets.finish(format)?;
        self.meter.set(rows, bytes, u64::from(part.block_count().unwrap_or(0)));
        Ok(Scanned::Rows { rows, bytes })
    }

    /// A row without a way has to be where it belongs.
    fn refuse_lost(&self, part: &Part, shard: ShardNo) -> Result<()> {
        match self.destination.staying.shards.get(&shard) {
            Some(node) if *node == self.node => Ok(()),
            _ => Err(Error::internal(format!(
                "a row of table {} belongs to shard {shard}, where none was to come",
                part.name()
            ))),
        }
    }

    /// A row that has no place on any shard.
    fn unplaced(&self, part: &Part, router: &Router, row: Row<'_>) -> Error {
        let key = match router {
            Router::Mapped(search) => search.key_of(row),
            _ => "NULL".to_owned(),
        };
        let columns = part.key_columns.as_deref().unwrap_or_default();
        Error::new(
            Kind::Server("23514".to_owned()),
            format!(
                "no shard of cluster \"{}\" takes a row of table {}",
                self.destination.name,
                part.name()
            ),
        )
        .detail(format!(
            "Its sharding key {} is {key}, which is mapped to no shard.",
            rule::shown(columns)
        ))
        .hint(format!(
            "Delete the row or give it another key, then SELECT reshard_resume({task}); or \
             SELECT reshard_cancel({task}), map the key to a shard, and start again.",
            task = self.task_id
        ))
    }
}

/// Says which shard takes a row.
enum Router {
    All,
    Hash(KeyHash),
    Mapped(KeySearch),
}

impl Router {
    /// By the columns of the key, which are there unless all shards get all rows.
    fn new(
        placement: &Placement,
        key: &[Attribute],
        scratch: pgrx::pg_sys::MemoryContext,
    ) -> Result<Self> {
        Ok(match (placement, key) {
            (Placement::All, _) => Self::All,
            (Placement::Hash { shards }, [_, ..]) => {
                Self::Hash(KeyHash::new(key, *shards, scratch)?)
            }
            (Placement::Mapped(map), [key]) => Self::Mapped(KeySearch::new(*key, map, scratch)?),
            _ => return Err(Error::internal("a scan without its sharding key")),
        })
    }

    /// The row's shard, shard 0 where all take it; `None` where none does.
    #[inline]
    fn route(&self, row: Row<'_>) -> Option<ShardNo> {
        match self {
            Self::All => Some(ShardNo(0)),
            Self::Hash(key) => Some(key.of(row)),
            Self::Mapped(key) => key.of(row),
        }
    }
}

/// Where rows go: one outlet for each shard, or one for all that get what every shard has.
struct Outlets<'a> {
    outlets: Vec<Outlet>,
    ways: Vec<Option<usize>>,
    transport: Transport<'a>,
}

struct Outlet {
    buffer: Vec<u8>,
    rows: u64,
    senders: Vec<UnboundedSender<Load>>,
}

/// What all outlets of a part share.
struct Transport<'a> {
    copier: &'a Copier,
    shipped: u64,
}

impl<'a> Outlets<'a> {
    fn new(
        copier: &'a Copier,
        is_omni: bool,
        senders: Vec<UnboundedSender<Load>>,
        format: Format,
    ) -> Self {
        let outlet = |senders| {
            let mut buffer = copier.budget.buffer();
            if format == Format::Binary {
                buffer.extend_from_slice(BINARY_HEADER);
            }
            Outlet { buffer, rows: 0, senders }
        };
        let (outlets, ways) = if is_omni {
            // A shard that stays has such a table already.
            let (mut joining, mut staying) = (Vec::new(), Vec::new());
            let shards = copier.destination.numbers().zip(&copier.ways);
            for ((shard, _), sender) in shards.filter(|(_, way)| way.is_some()).zip(senders) {
                match copier.destination.stays(shard) {
                    true => staying.push(sender),
                    false => joining.push(sender),
                }
            }
            let all = std::iter::once(joining).chain((!staying.is_empty()).then_some(staying));
            (all.map(outlet).collect(), vec![Some(0)])
        } else {
            (senders.into_iter().map(|s| outlet(vec![s])).collect(), copier.ways.clone())
        };
        Self { outlets, ways, transport: Transport { copier, shipped: 0 } }
    }

    /// The outlet of a shard's rows; none where they stay.
    #[inline]
    fn of(&self, shard: ShardNo) -> Option<usize> {
        self.ways.get(shard.index()).copied().flatten()
    }

    #[inline]
    fn append(&mut self, outlet: usize, encoder: &Encoder, row: Row<'_>) -> bool {
        let Outlet { buffer, rows, senders } = &mut self.outlets[outlet];
        *rows += 1;
        let mut shipping = Shipping { transport: &mut self.transport, senders };
        encoder.append(row, buffer, &mut shipping)
            && (buffer.len() < shipping.capacity() || shipping.take(buffer))
    }

    /// Bytes that have left.
    fn bytes(&self) -> u64 {
        self.transport.shipped
    }

    /// Sends what is left, and the end of the COPY.
    fn finish(mut self, format: Format) -> Result<u64> {
        for outlet in &mut self.outlets {
            if format == Format::Binary {
                outlet.buffer.extend_from_slice(BINARY_TRAILER);
            }
            let mut shipping =
                Shipping { transport: &mut self.transport, senders: &outlet.senders };
            let sent = (outlet.buffer.is_empty() || shipping.take(&mut outlet.buffer))
                && outlet.senders.iter().all(|s| s.send(Load::End(outlet.rows)).is_ok());
            if !sent {
                return Err(Error::new(Kind::Cancelled, "copy was given up"));
            }
        }
        Ok(self.transport.shipped)
    }
}

struct Shipping<'a, 'b> {
    transport: &'a mut Transport<'b>,
    senders: &'a [UnboundedSender<Load>],
}

impl Overflow for Shipping<'_, '_> {
    fn capacity(&self) -> usize {
        self.transport.copier.budget.chunk()
    }

    fn take(&mut self, buffer: &mut Vec<u8>) -> bool {
        let Copier { runtime, budget, .. } = self.transport.copier;
        let full = std::mem::replace(buffer, budget.buffer());
        let size = full.len() as u64;
        self.transport.shipped += size;
        let bytes = budget.book(full);
        for sender in self.senders {
            if sender.send(Load::Data(bytes.clone())).is_err() {
                return false;
            }
        }
        drop(bytes);
        if budget.is_exceeded() {
            runtime::block_on(runtime, budget.room(), || ());
        } else {
            // A turn for the network: send what can be sent without waiting.
            runtime.block_on(async {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            });
            interrupt::check();
        }
        keep_pace(runtime, size);
        true
    }
}

/// Waits as the rate limit asks for; a new limit holds at once.
fn keep_pace(runtime: &Runtime, bytes: u64) {
    let limit = rate_limit();
    let mut wait = progress::throttle(bytes, limit);
    while !wait.is_zero() && rate_limit() == limit {
        let step = wait.min(LOOK_AT_LIMIT);
        runtime::block_on(runtime, async { tokio::time::sleep(step).await }, || ());
        wait -= step;
    }
}

fn rate_limit() -> u64 {
    u64::try_from(gucs::COPY_RATE_LIMIT.get()).unwrap_or(0) * 1024
}

/// Of two errors the one that says what went wrong: not the one of those that
/// only gave up because of it.
fn more_telling(first: Option<Error>, second: Option<Error>) -> Option<Error> {
    match (first, second) {
        (Some(first), Some(second)) if first.kind == Kind::Cancelled => Some(second),
        (Some(first), _) => Some(first),
        (None, second) => second,
    }
}

/// What `ImportSnapshot` of src/backend/utils/time/snapmgr.c raises when the
/// exporting transaction has ended: no such file, or no such process any more.
pub(super) fn is_lost_snapshot(error: &Error) -> bool {
    matches!(error.sqlstate(), "22023" | "42704" | "55000")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_cause_is_told_before_its_consequences() {
        let given_up = || Some(Error::new(Kind::Cancelled, "given up"));
        let cause = || Some(Error::new(Kind::ConnectionLost, "lost"));
        assert_eq!(more_telling(given_up(), cause()).unwrap().message, "lost");
        assert_eq!(more_telling(cause(), given_up()).unwrap().message, "lost");
        assert_eq!(more_telling(None, given_up()).unwrap().message, "given up");
    }
}
