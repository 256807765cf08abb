//! The entry of a verify worker: a dynamic background worker that the coordinator
//! starts for a comparison and that ends when no chunk is left.
use pgrx::prelude::*;

use crate::error::{Error, Result};
use crate::pg::{db, dynamic_worker, interrupt, report, xact};
use crate::state::verification;

/// Entry of the worker; `bgw_extra` holds database and task.
#[pg_guard]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn reshard_verify_worker_main(_arg: pg_sys::Datum) {
    interrupt::install_worker_handlers();
    report::or_raise(start());
}

fn start() -> Result<()> {
    let extra = dynamic_worker::extra();
    let words: Option<Vec<i64>> = extra.split(' ').map(|word| word.parse().ok()).collect();
    let (database, task_id) = match words.as_deref() {
        Some([database, task_id]) => (*database, *task_id),
        _ => return Err(Error::internal(format!("verify worker started with \"{extra}\""))),
    };
    dynamic_worker::connect_to_database(u32::try_from(database).unwrap_or(0))?;
    xact::transaction(|| {
        db::run(&format!("SET application_name = '{}'", verification::worker_name(task_id)))
    })?;
    crate::verify::work(task_id)
}
