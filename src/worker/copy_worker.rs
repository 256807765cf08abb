//! The entry of a copy worker: a dynamic background worker that the coordinator
//! starts and that ends when no part is left.
use pgrx::prelude::*;

use crate::error::{Error, Result};
use crate::pg::{dynamic_worker, interrupt, report};

/// Entry of the worker; `bgw_extra` holds database, task and wave.
#[pg_guard]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn reshard_copy_worker_main(_arg: pg_sys::Datum) {
    interrupt::install_worker_handlers();
    report::or_raise(start());
}

fn start() -> Result<()> {
    let extra = dynamic_worker::extra();
    let mut words = extra.split(' ');
    let mut next = || {
        words
            .next()
            .and_then(|w| w.parse::<i64>().ok())
            .ok_or_else(|| Error::internal(format!("copy worker started with \"{extra}\"")))
    };
    let (database, task_id, wave) = (next()?, next()?, next()?);
    dynamic_worker::connect_to_database(u32::try_from(database).unwrap_or(0))?;
    crate::copy::work(task_id, i32::try_from(wave).unwrap_or(0))
}
