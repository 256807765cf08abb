//! Shared memory of the copy: what each copy worker has done so far, and the
//! rate that they share. A worker writes its place without a lock and without a
//! transaction; the coordinator reads it and writes the tables.
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use pgrx::{pg_guard, pg_shmem_init, pg_sys, PGRXSharedMemory, PgAtomic};

/// Copy workers of the whole server that can be watched at the same time.
const PLACES: usize = 256;
/// How far ahead of the rate workers may read, in microseconds.
const BURST: i64 = 200_000;

#[derive(Default)]
struct Place {
    pid: AtomicI32,
    /// Each database numbers its tasks by itself.
    database: AtomicU32,
    table_id: AtomicI32,
    part_no: AtomicI32,
    task_id: AtomicI64,
    rows: AtomicU64,
    bytes: AtomicU64,
    blocks: AtomicU64,
}

struct Board {
    /// Grows whenever the state of a part changes.
    events: AtomicU64,
    /// Bytes that all workers have sent, each row counted once.
    sent: AtomicU64,
    /// When the bytes read so far are paid for, in microseconds of the server's clock.
    paid_until: AtomicI64,
    /// The rate under which they were booked, in bytes a second.
    rate: AtomicU64,
    places: [Place; PLACES],
}

impl Default for Board {
    fn default() -> Self {
        Self {
            events: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            paid_until: AtomicI64::new(0),
            rate: AtomicU64::new(0),
            places: std::array::from_fn(|_| Place::default()),
        }
    }
}

// Atomics only.
unsafe impl PGRXSharedMemory for Board {}

static BOARD: PgAtomic<Board> = unsafe { PgAtomic::new(c"reshard copy progress") };
static READY: AtomicBool = AtomicBool::new(false);

/// Asks for shared memory. Called once, from `_PG_init`, while
/// `shared_preload_libraries` are loaded.
pub fn init() {
    pg_shmem_init!(BOARD);
    READY.store(true, Ordering::Relaxed);
}

fn board() -> Option<&'static Board> {
    READY.load(Ordering::Relaxed).then(|| BOARD.get())
}

/// What a worker has done of the part that it is copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The part's table.
    pub table_id: i32,
    /// The part's number.
    pub part_no: i32,
    /// Rows so far.
    pub rows: u64,
    /// Bytes so far, as encoded, each row counted once.
    pub bytes: u64,
    /// Blocks so far.
    pub blocks: u64,
}

impl Place {
    /// What it says, where it is about a part of that task of a database.
    fn reading(&self, database: u32, task_id: i64) -> Option<Reading> {
        let table_id = self.table_id.load(Ordering::Acquire);
        let is_asked_for = self.pid.load(Ordering::Relaxed) != 0
            && self.database.load(Ordering::Relaxed) == database
            && self.task_id.load(Ordering::Relaxed) == task_id
            && table_id >= 0;
        is_asked_for.then(|| Reading {
            table_id,
            part_no: self.part_no.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            blocks: self.blocks.load(Ordering::Relaxed),
        })
    }
}

/// The parts of a task of this database that are being copied.
pub fn readings(task_id: i64) -> Vec<Reading> {
    let Some(board) = board() else { return Vec::new() };
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    board.places.iter().filter_map(|place| place.reading(database, task_id)).collect()
}

/// A number that differs as soon as any worker has begun a part or written down how
/// one ended.
pub fn events() -> u64 {
    board().map_or(0, |b| b.events.load(Ordering::Acquire))
}

/// Bytes that all workers of this server have sent since it was started.
pub fn sent() -> u64 {
    board().map_or(0, |b| b.sent.load(Ordering::Relaxed))
}

/// Says that the state of a part is another one now.
pub fn tell() {
    if let Some(board) = board() {
        board.events.fetch_add(1, Ordering::Release);
    }
}

/// This worker's place; given up with [`Meter::leave`] or found again by the
/// next worker once the process is gone.
pub struct Meter {
    place: Option<&'static Place>,
}

impl Meter {
    /// Takes a place. Without a free one the worker runs unwatched.
    pub fn take() -> Self {
        let pid = unsafe { pg_sys::MyProcPid };
        let place = board().and_then(|board| {
            board.places.iter().find(|place| {
                let holder = place.pid.load(Ordering::Acquire);
                let free = holder == 0 || holder == pid || !is_alive(holder);
                free && place
                    .pid
                    .compare_exchange(holder, pid, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            })
        });
        if let Some(place) = place {
            place.table_id.store(-1, Ordering::Release);
        }
        Self { place }
    }

    /// A part begins.
    pub fn begin(&self, task_id: i64, table_id: i32, part_no: i32) {
        if let Some(place) = self.place {
            place.table_id.store(-1, Ordering::Release);
            place.rows.store(0, Ordering::Relaxed);
            place.bytes.store(0, Ordering::Relaxed);
            place.blocks.store(0, Ordering::Relaxed);
            place.database.store(unsafe { pg_sys::MyDatabaseId }.to_u32(), Ordering::Relaxed);
            place.task_id.store(task_id, Ordering::Relaxed);
            place.part_no.store(part_no, Ordering::Relaxed);
            place.table_id.store(table_id, Ordering::Release);
        }
        tell();
    }

    /// How far the part is.
    pub fn set(&self, rows: u64, bytes: u64, blocks: u64) {
        if let Some(place) = self.place {
            place.rows.store(rows, Ordering::Relaxed);
            place.bytes.store(bytes, Ordering::Relaxed);
            place.blocks.store(blocks, Ordering::Relaxed);
        }
    }

    /// The part has been read, well or not.
    pub fn end(&self) {
        if let Some(place) = self.place {
            place.table_id.store(-1, Ordering::Release);
        }
    }

    /// Gives the place up.
    pub fn leave(self) {
        self.end();
        if let Some(place) = self.place {
            place.pid.store(0, Ordering::Release);
        }
    }
}

/// Counts `bytes` that are sent, books them against the rate that all workers share,
/// `limit` bytes a second, and says how long the caller has to wait.
pub fn throttle(bytes: u64, limit: u64) -> Duration {
    let Some(board) = board() else { return Duration::ZERO };
    board.sent.fetch_add(bytes, Ordering::Relaxed);
    if limit == 0 {
        return Duration::ZERO;
    }
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    if board.rate.swap(limit, Ordering::AcqRel) != limit {
        board.paid_until.store(now, Ordering::Release);
    }
    let cost = i64::try_from(bytes.saturating_mul(1_000_000) / limit).unwrap_or(i64::MAX / 4);
    let book = |until: i64| Some(until.max(now - BURST).saturating_add(cost));
    match board.paid_until.fetch_update(Ordering::AcqRel, Ordering::Acquire, book) {
        Ok(before) => {
            let until = before.max(now - BURST).saturating_add(cost);
            Duration::from_micros(u64::try_from(until - now).unwrap_or(0))
        }
        Err(_) => Duration::ZERO,
    }
}

fn is_alive(pid: i32) -> bool {
    // Signal 0 only asks.
    unsafe { libc::kill(pid, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_of_two_databases_may_have_the_same_number() {
        let place = Place::default();
        place.pid.store(1, Ordering::Relaxed);
        place.database.store(5, Ordering::Relaxed);
        place.task_id.store(1, Ordering::Relaxed);
        place.rows.store(7, Ordering::Relaxed);
        assert_eq!(place.reading(5, 1).map(|r| r.rows), Some(7));
        assert_eq!(place.reading(6, 1), None);
        assert_eq!(place.reading(5, 2), None);
    }
}
