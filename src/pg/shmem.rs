//! Shared memory: who runs, and who asked for a worker. Nothing here needs to
//! survive a crash; the state tables hold all that does.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::prelude::pg_guard;
use pgrx::{pg_shmem_init, pg_sys, PGRXSharedMemory, PgLwLock};

/// Databases that can have a coordinator at the same time.
const MAX_DATABASES: usize = 64;

#[derive(Clone, Copy, Default)]
struct Entry {
    database: u32,
    /// A coordinator is wanted.
    asked: bool,
    /// Process of its coordinator; 0 for none.
    pid: i32,
    /// Since when none can be started, as `GetCurrentTimestamp()` says; 0 where one can.
    refused_since: i64,
    /// Address of that process' latch, which lies in shared memory.
    latch: usize,
}

impl Entry {
    /// Whether its coordinator has ended without saying so.
    fn is_deserted(&self) -> bool {
        self.pid != 0 && unsafe { pg_sys::BackendPidGetProc(self.pid) }.is_null()
    }
}

#[derive(Clone, Copy)]
struct Board {
    launcher_latch: usize,
    entries: [Entry; MAX_DATABASES],
}

impl Default for Board {
    fn default() -> Self {
        Self { launcher_latch: 0, entries: [Entry::default(); MAX_DATABASES] }
    }
}

unsafe impl PGRXSharedMemory for Board {}

static BOARD: PgLwLock<Board> = unsafe { PgLwLock::new(c"reshard board") };
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Whether `shared_preload_libraries` are being loaded now.
pub fn preloading() -> bool {
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Asks for shared memory; only while `shared_preload_libraries` are loaded.
pub fn init() {
    pg_shmem_init!(BOARD);
    PRELOADED.store(true, Ordering::Relaxed);
}

/// Whether the library was loaded by `shared_preload_libraries`.
pub fn is_preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

fn my_latch() -> usize {
    unsafe { pg_sys::MyLatch as usize }
}

fn set_latch(address: usize) {
    if address != 0 {
        unsafe { pg_sys::SetLatch(address as *mut pg_sys::Latch) };
    }
}

impl Board {
    fn entry(&mut self, database: u32) -> Option<&mut Entry> {
        let at = self
            .entries
            .iter()
            .position(|e| e.database == database)
            .or_else(|| self.entries.iter().position(|e| e.database == 0))?;
        let entry = &mut self.entries[at];
        entry.database = database;
        Some(entry)
    }
}

/// Makes this process the launcher.
pub fn register_launcher() {
    BOARD.exclusive().launcher_latch = my_latch();
}

/// Databases for which a coordinator was asked for, or has to be, and none runs.
pub fn take_requests() -> Vec<u32> {
    let mut board = BOARD.exclusive();
    let mut wanted = Vec::new();
    for entry in &mut board.entries {
        // One that was ended while no launcher watched it.
        if entry.is_deserted() {
            *entry = Entry { database: entry.database, asked: true, ..Entry::default() };
        }
        if !std::mem::take(&mut entry.asked) {
            continue;
        }
        if entry.pid == 0 {
            wanted.push(entry.database);
        } else {
            set_latch(entry.latch);
        }
    }
    wanted
}

/// Makes this process the coordinator of a database; false where it has one.
pub fn register_coordinator(database: u32, pid: i32) -> bool {
    let mut board = BOARD.exclusive();
    match board.entry(database) {
        Some(entry) if entry.pid == 0 || entry.pid == pid || entry.is_deserted() => {
            entry.pid = pid;
            entry.latch = my_latch();
            entry.refused_since = 0;
            true
        }
        _ => false,
    }
}

/// Whether a coordinator of that database has found work.
pub fn has_coordinator(database: u32) -> bool {
    BOARD.share().entries.iter().any(|e| e.database == database && e.pid != 0)
}

/// Notes whether a coordinator that somebody has asked for could be started.
pub fn note_start(database: u32, started: bool) {
    let mut board = BOARD.exclusive();
    let Some(entry) = board.entries.iter_mut().find(|e| e.database == database) else { return };
    if started {
        entry.refused_since = 0;
    } else if entry.refused_since == 0 {
        entry.refused_since = unsafe { pg_sys::GetCurrentTimestamp() };
    }
}

/// For how long no coordinator of this database could be started; none where one can.
pub fn refused_for() -> Option<Duration> {
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let board = BOARD.share();
    let entry = board.entries.iter().find(|e| e.database == database && e.refused_since != 0)?;
    Some(Duration::from_micros(u64::try_from(now - entry.refused_since).unwrap_or(0)))
}

/// Ends a coordinator's place on the board; true where it had one.
pub fn unregister_coordinator(database: u32, pid: i32) -> bool {
    let mut board = BOARD.exclusive();
    match board.entries.iter_mut().find(|e| e.database == database && e.pid == pid) {
        Some(entry) => {
            entry.pid = 0;
            entry.latch = 0;
            true
        }
        None => false,
    }
}

/// Has the launcher start a coordinator of this database where none runs.
pub fn require_coordinator() {
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    if !has_coordinator(database) {
        wake(database);
    }
}

/// Wakes the coordinator of this database, or has the launcher start one, as
/// soon as the current transaction has committed.
pub fn wake_after_commit() {
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    pgrx::register_xact_callback(pgrx::PgXactCallbackEvent::Commit, move || wake(database));
}

fn wake(database: u32) {
    let mut board = BOARD.exclusive();
    let launcher = board.launcher_latch;
    if let Some(entry) = board.entry(database) {
        if entry.pid == 0 || entry.is_deserted() {
            entry.asked = true;
            set_latch(launcher);
        } else {
            set_latch(entry.latch);
        }
    }
}
