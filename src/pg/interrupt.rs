//! Latches, signals and configuration reload of a background worker.
use pgrx::pg_sys;

// The server's own handlers, without the guard that pgrx puts around functions:
// a signal handler must not touch the exception stack.
unsafe extern "C-unwind" {
    fn die(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
    // src/include/storage/pmsignal.h
    fn PostmasterIsAliveInternal() -> bool;
}

/// Runs the server's own interrupt handling: query cancel, termination,
/// shutdown. Does not return when the process is to end.
pub fn check() {
    pgrx::check_for_interrupts!();
}

/// Ends this process when its postmaster is gone: a new one can't start as long
/// as somebody uses the old one's shared memory.
pub fn exit_without_postmaster() {
    unsafe {
        if !PostmasterIsAliveInternal() {
            pg_sys::proc_exit(1);
        }
    }
}

/// Ends this process as `kill -9` does.
#[cfg(feature = "failpoints")]
pub fn kill_this_process() {
    unsafe { libc::raise(libc::SIGKILL) };
}

/// Resets this process' latch; true if it had been set.
pub fn take_latch() -> bool {
    unsafe {
        let latch = pg_sys::MyLatch;
        let set = (*latch).is_set != 0;
        if set {
            pg_sys::ResetLatch(latch);
        }
        set
    }
}

/// Waits for this process' latch, at most `milliseconds`; then handles
/// interrupts. For SQL functions and the launcher, which have no runtime.
pub fn wait_latch(milliseconds: i64) {
    unsafe {
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check();
}

/// Rereads the configuration files if a SIGHUP came.
pub fn reload_configuration_if_asked() {
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

// `pqsignal` has another name in the server since 18 (src/include/port.h).
#[cfg(not(feature = "pg18"))]
use pg_sys::pqsignal as set_handler;
#[cfg(feature = "pg18")]
use pg_sys::pqsignal_be as set_handler;

/// Installs the server's standard handlers for a worker: SIGTERM ends it at the
/// next [`check`], SIGHUP asks for a reload. Then lets signals in.
pub fn install_worker_handlers() {
    unsafe {
        set_handler(pg_sys::SIGTERM as i32, Some(die));
        set_handler(pg_sys::SIGHUP as i32, Some(SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}
