//! Background workers that this process starts, watches and ends.
//!
//! They are never restarted by the postmaster, and none outlives the process
//! that started it: when that ends, its workers are told to end as well.
use std::sync::Mutex;

use pgrx::pg_sys;

use crate::error::Result;
use crate::pg::settings::OURS;
use crate::pg::{db, xact};

/// What the postmaster says about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerStatus {
    /// Not started yet.
    Starting,
    /// Runs, with this process id.
    Running(i32),
    /// Has ended.
    Stopped,
}

/// A worker that was started by this process. Ends with it.
pub struct DynamicWorker {
    handle: *mut pg_sys::BackgroundWorkerHandle,
}

struct Handle(*mut pg_sys::BackgroundWorkerHandle);
// Only the main thread touches the list; the lock is for the compiler.
unsafe impl Send for Handle {}
static STARTED: Mutex<Vec<Handle>> = Mutex::new(Vec::new());
static EXIT_HOOK: std::sync::Once = std::sync::Once::new();

impl DynamicWorker {
    /// Starts a worker of this library; `None` where the server has no free place
    /// for one. `extra` must not be longer than 127 bytes.
    pub fn start(name: &str, kind: &str, function: &str, extra: &str) -> Option<Self> {
        let mut worker = pg_sys::BackgroundWorker {
            bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS
                | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32,
            bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
            bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
            bgw_notify_pid: unsafe { pg_sys::MyProcPid },
            ..Default::default()
        };
        fill(&mut worker.bgw_name, name);
        fill(&mut worker.bgw_type, kind);
        fill(&mut worker.bgw_library_name, "reshard");
        fill(&mut worker.bgw_function_name, function);
        fill(&mut worker.bgw_extra, extra);
        let mut handle = std::ptr::null_mut();
        let registered = unsafe {
            let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
            pg_sys::MemoryContextSwitchTo(before);
            registered
        };
        if !registered {
            return None;
        }
        EXIT_HOOK.call_once(|| unsafe {
            pg_sys::before_shmem_exit(Some(end_all), pg_sys::Datum::from(0));
        });
        if let Ok(mut started) = STARTED.lock() {
            started.push(Handle(handle));
        }
        Some(Self { handle })
    }

    /// What it does now.
    pub fn status(&self) -> WorkerStatus {
        let mut pid = 0;
        match unsafe { pg_sys::GetBackgroundWorkerPid(self.handle, &mut pid) } {
            pg_sys::BgwHandleStatus::BGWH_STARTED => WorkerStatus::Running(pid),
            pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED => WorkerStatus::Starting,
            _ => WorkerStatus::Stopped,
        }
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        unsafe { pg_sys::TerminateBackgroundWorker(self.handle) };
    }
}

impl Drop for DynamicWorker {
    fn drop(&mut self) {
        self.terminate();
        if let Ok(mut started) = STARTED.lock() {
            started.retain(|h| h.0 != self.handle);
        }
        unsafe { pg_sys::pfree(self.handle.cast()) };
    }
}

/// A FATAL exit runs no destructor; this runs instead.
unsafe extern "C-unwind" fn end_all(_code: i32, _arg: pg_sys::Datum) {
    if let Ok(started) = STARTED.try_lock() {
        for handle in started.iter() {
            unsafe { pg_sys::TerminateBackgroundWorker(handle.0) };
        }
    }
}

fn fill(field: &mut [std::ffi::c_char], text: &str) {
    let room = field.len() - 1;
    for (to, from) in field.iter_mut().zip(text.bytes().take(room)) {
        *to = from as std::ffi::c_char;
    }
}

/// What this worker was given to do with.
pub fn extra() -> String {
    unsafe {
        let extra = &(*pg_sys::MyBgworkerEntry).bgw_extra;
        extra.iter().take_while(|c| **c != 0).map(|c| char::from(*c as u8)).collect()
    }
}

/// Connects this worker to a database, as the bootstrap superuser, and sets it up as each
/// session of ours.
///
/// # Errors
/// SPI's own; where there is no such database, an ERROR is raised.
pub fn connect_to_database(database: u32) -> Result<()> {
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::Oid::from(database),
            pg_sys::InvalidOid,
            0,
        );
    }
    xact::transaction(|| db::run(OURS))
}

/// The database that this process is connected to.
pub fn current_database() -> u32 {
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

/// This process.
pub fn process_id() -> i32 {
    unsafe { pg_sys::MyProcPid }
}
