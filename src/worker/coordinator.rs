//! The coordinator of one database: keeps a driver running for each task that
//! is unfinished or has an intent waiting, and a mirror for each other shard of its source.
//! Holds nothing that a restart would miss, apart from exported snapshots, whose loss makes
//! a second wave.
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::prelude::*;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet};

use crate::error::Result;
use crate::pg::xact::transaction;
use crate::pg::{db, dynamic_worker, interrupt, runtime, shmem};
use crate::remote::Connection;
use crate::state::mirror::{self, Feed};
use crate::state::{intent, task};
use crate::worker::{driver, mirroring};

/// How long a coordinator without work stays.
const IDLE: Duration = Duration::from_secs(20);
/// How often the state is looked at when nobody woke the coordinator.
const PERIOD: Duration = Duration::from_secs(1);

/// What drivers of one coordinator share.
pub struct Shared {
    /// Told when a user may have asked for something.
    pub wake: Notify,
    /// Sessions that hold the snapshot of a task's current wave. They outlive a
    /// failed driver, so that a resumed copy goes on where it was.
    pub snapshots: RefCell<HashMap<i64, Snapshots>>,
    /// How often a driver had a table of a task copied anew, since rows of it had come twice.
    pub doubled: RefCell<HashMap<(i64, i32), u32>>,
}

/// The exported snapshots of a wave, one of each source shard.
pub struct Snapshots {
    /// The wave that is copied under them.
    pub wave: i32,
    /// The sessions that keep them; a snapshot ends with its session.
    pub sessions: Vec<Connection>,
}

impl Snapshots {
    /// Whether one of them is known to be lost, which ends the wave.
    pub fn is_lost(&self) -> bool {
        self.sessions.iter().any(Connection::is_closed)
    }
}

/// Entry of a coordinator's process; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
pub extern "C-unwind" fn reshard_coordinator_main(arg: pg_sys::Datum) {
    let database = arg.value() as u32;
    let pid = std::process::id() as i32;
    interrupt::install_worker_handlers();
    let found = dynamic_worker::connect_to_database(database).and_then(|()| {
        transaction(|| {
            // A lock that somebody holds on a state table must not stop all tasks.
            db::run("SET lock_timeout = '10s'")?;
            has_work()
        })
    });
    if !matches!(found, Ok(true)) {
        if let Err(error) = found {
            warning!("reshard could not look for work: {}", error.one_line());
        }
        return;
    }
    if !shmem::register_coordinator(database, pid) {
        return;
    }
    let shared = Rc::new(Shared {
        wake: Notify::new(),
        snapshots: RefCell::default(),
        doubled: RefCell::default(),
    });
    let runtime = match runtime::build() {
        Ok(runtime) => runtime,
        Err(error) => crate::pg::report::raise(error),
    };
    let local = LocalSet::new();
    let waker = Rc::clone(&shared);
    let result = runtime::block_on(&runtime, local.run_until(run(shared, database, pid)), || {
        waker.wake.notify_waiters();
    });
    runtime.shutdown_background();
    if let Err(error) = result {
        crate::pg::report::raise(error);
    }
}

/// Whether this database has the extension and anything to do.
fn has_work() -> Result<bool> {
    if !db::truth("SELECT true FROM pg_catalog.pg_extension WHERE extname = 'reshard'", &[])? {
        return Ok(false);
    }
    Ok(!task::unfinished_roots()?.is_empty()
        || !intent::tasks_with_pending()?.is_empty()
        || !mirror::unsettled()?.is_empty())
}

async fn run(shared: Rc<Shared>, database: u32, pid: i32) -> Result<()> {
    let mut drivers: HashMap<i64, JoinHandle<()>> = HashMap::new();
    let mut mirrors: HashMap<Feed, JoinHandle<()>> = HashMap::new();
    let mut idle_since = Instant::now();
    loop {
        drivers.retain(|_, driver| !driver.is_finished());
        mirrors.retain(|_, mirror| !mirror.is_finished());
        let wanted = transaction(|| {
            let mut ids: Vec<i64> = task::unfinished_roots()?.into_iter().map(|t| t.id).collect();
            ids.extend(intent::tasks_with_pending()?);
            Ok((ids, mirror::unsettled()?))
        });
        let (wanted, feeds) = match wanted {
            Ok(wanted) => wanted,
            // DROP EXTENSION took the tables away: there is nothing left to do.
            Err(error) if error.sqlstate() == "42P01" || error.sqlstate() == "3F000" => {
                shmem::unregister_coordinator(database, pid);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for id in wanted {
            drivers
                .entry(id)
                .or_insert_with(|| tokio::task::spawn_local(driver::run(id, Rc::clone(&shared))));
        }
        for feed in feeds {
            mirrors.entry(feed).or_insert_with(|| tokio::task::spawn_local(mirroring::run(feed)));
        }
        let is_idle = drivers.is_empty() && mirrors.is_empty();
        if !is_idle || !shared.snapshots.borrow().is_empty() {
            idle_since = Instant::now();
        } else if idle_since.elapsed() > IDLE {
            shmem::unregister_coordinator(database, pid);
            // Who asked before this moment set the latch of a process about to
            // end; who asks after it wakes the launcher.
            if !transaction(has_work)? {
                return Ok(());
            }
            if !shmem::register_coordinator(database, pid) {
                return Ok(());
            }
        }
        let woken = shared.wake.notified();
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}
