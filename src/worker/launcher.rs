//! The launcher: connected to shared catalogs only, it starts a coordinator in
//! each database that asked for one, and after a start of the server in every
//! database, since only a look inside tells whether there is unfinished work.
//! A coordinator that finds none ends at once.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime,
    DynamicBackgroundWorker,
};
use pgrx::prelude::*;
use pgrx::IntoDatum;

use crate::pg::{databases, interrupt, shmem};
use crate::worker::LIBRARY;

/// Pause before a coordinator that failed, or could not be started, is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Coordinators that look for work at the same time after a start of the server.
const PROBES: usize = 2;

/// Registers the launcher with the postmaster; from `_PG_init`.
pub fn register() {
    BackgroundWorkerBuilder::new("reshard launcher")
        .set_type("reshard launcher")
        .set_library(LIBRARY)
        .set_function("reshard_launcher_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .enable_shmem_access(None)
        .enable_spi_access()
        .load();
}

/// Entry of the launcher's process.
#[pg_guard]
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
pub extern "C-unwind" fn reshard_launcher_main(_arg: pg_sys::Datum) {
    interrupt::install_worker_handlers();
    BackgroundWorker::connect_worker_to_spi(None, None);
    shmem::register_launcher();
    let mut launcher = Launcher {
        waiting: databases::connectable().into_iter().map(|d| (d, Instant::now())).collect(),
        running: HashMap::new(),
    };
    loop {
        launcher.turn();
        interrupt::wait_latch(launcher.timeout().as_millis() as i64);
        interrupt::reload_configuration_if_asked();
    }
}

struct Launcher {
    /// Databases that want a coordinator, and when to start it.
    waiting: Vec<(u32, Instant)>,
    running: HashMap<u32, (DynamicBackgroundWorker, i32)>,
}

impl Launcher {
    fn timeout(&self) -> Duration {
        if self.waiting.is_empty() {
            Duration::from_secs(10)
        } else {
            Duration::from_millis(200)
        }
    }

    fn turn(&mut self) {
        self.reap();
        for database in shmem::take_requests() {
            if !self.waiting.iter().any(|(d, _)| *d == database) {
                self.waiting.push((database, Instant::now()));
            }
        }
        let now = Instant::now();
        let due: Vec<u32> = self
            .waiting
            .iter()
            .filter(|(d, at)| *at <= now && !self.running.contains_key(d))
            .map(|(d, _)| *d)
            .collect();
        for database in due {
            if self.running.len() >= PROBES && self.running.len() >= self.settled() + PROBES {
                break;
            }
            self.waiting.retain(|(d, _)| *d != database);
            self.start(database);
        }
    }

    /// Coordinators that found work and stay.
    fn settled(&self) -> usize {
        self.running.keys().filter(|d| shmem::has_coordinator(**d)).count()
    }

    fn start(&mut self, database: u32) {
        let worker = BackgroundWorkerBuilder::new(&format!("reshard coordinator {database}"))
            .set_type("reshard coordinator")
            .set_library(LIBRARY)
            .set_function("reshard_coordinator_main")
            .set_argument(i64::from(database).into_datum())
            .set_notify_pid(std::process::id() as i32)
            .set_restart_time(None)
            .enable_shmem_access(None)
            .enable_spi_access()
            .load_dynamic();
        shmem::note_start(database, worker.is_ok());
        match worker {
            Ok(worker) => {
                self.running.insert(database, (worker, 0));
            }
            Err(_) => {
                warning!(
                    "reshard could not start a coordinator: max_worker_processes is too small"
                );
                self.waiting.push((database, Instant::now() + RETRY));
            }
        }
    }

    fn reap(&mut self) {
        let mut ended = Vec::new();
        for (database, (worker, pid)) in &mut self.running {
            match worker.pid() {
                Ok(now) => *pid = now,
                Err(BackgroundWorkerStatus::NotYetStarted) => {}
                Err(_) => ended.push((*database, *pid)),
            }
        }
        for (database, pid) in ended {
            self.running.remove(&database);
            // A coordinator that ended well took itself off the board.
            if shmem::unregister_coordinator(database, pid) {
                self.waiting.push((database, Instant::now() + RETRY));
            }
        }
    }
}
