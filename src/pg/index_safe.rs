//! Lets CREATE INDEX CONCURRENTLY finish while a statement of ours waits for it.
use pgrx::pg_sys;

/// Place of `ProcArrayLock` in the array of named locks (lwlocknames.txt,
/// lwlocklist.h); the same in all versions.
const PROC_ARRAY_LOCK: usize = 4;

/// As long as it lives, builds of indexes don't wait for the snapshot of this
/// session's statement.
///
/// A build that is done waits for snapshots older than the index, whose owners could
/// use it and miss rows (`WaitForOlderSnapshots` in src/backend/commands/indexcmds.c).
/// A statement that does nothing but wait for the builder will never use it; without
/// this flag, which sessions that build indexes set for one another, the two would
/// wait for each other for ever. Vacuum heeds the snapshot all the same. The server
/// itself takes the flag back at the end of the transaction.
pub struct IndexSafe(());

impl IndexSafe {
    /// Sets the flag.
    pub fn begin() -> Self {
        set(true);
        Self(())
    }
}

impl Drop for IndexSafe {
    fn drop(&mut self) {
        set(false);
    }
}

fn set(safe: bool) {
    unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(PROC_ARRAY_LOCK)).lock;
        let flag = pg_sys::PROC_IN_SAFE_IC as u8;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let me = pg_sys::MyProc;
        match safe {
            true => (*me).statusFlags |= flag,
            false => (*me).statusFlags &= !flag,
        }
        *(*pg_sys::ProcGlobal).statusFlags.add((*me).pgxactoff as usize) = (*me).statusFlags;
        pg_sys::LWLockRelease(lock);
    }
}
