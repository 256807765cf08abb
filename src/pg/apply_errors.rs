//! What the apply workers of this server failed with. PostgreSQL only logs it and
//! counts it (`pg_stat_subscription_stats`); whoever has to mend a conflict needs
//! the text, which names the row.
use std::ffi::{c_char, CStr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU8, Ordering};

use pgrx::{pg_guard, pg_shmem_init, pg_sys, PGRXSharedMemory, PgAtomic, PgLogLevel};

/// Subscriptions whose last error is kept.
const PLACES: usize = 64;
/// Bytes of a text that are kept.
const LENGTH: usize = 1000;

struct Place {
    /// The subscription's oid; 0 for none.
    subscription: AtomicU32,
    text: [AtomicU8; LENGTH],
}

struct Board {
    places: [Place; PLACES],
}

impl Default for Board {
    fn default() -> Self {
        let place = || Place {
            subscription: AtomicU32::new(0),
            text: std::array::from_fn(|_| AtomicU8::new(0)),
        };
        Self { places: std::array::from_fn(|_| place()) }
    }
}

// Atomics only.
unsafe impl PGRXSharedMemory for Board {}

static BOARD: PgAtomic<Board> = unsafe { PgAtomic::new(c"reshard apply errors") };
static READY: AtomicBool = AtomicBool::new(false);
static mut PREVIOUS: pg_sys::emit_log_hook_type = None;

/// Asks for shared memory and listens to errors. Called once, from `_PG_init`,
/// while `shared_preload_libraries` are loaded.
pub fn init() {
    pg_shmem_init!(BOARD);
    READY.store(true, Ordering::Relaxed);
    unsafe {
        PREVIOUS = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(listen);
    }
}

/// The text of a subscription's last error since the server started.
pub fn last(subscription: u32) -> Option<String> {
    if !READY.load(Ordering::Relaxed) {
        return None;
    }
    let place = BOARD
        .get()
        .places
        .iter()
        .find(|p| p.subscription.load(Ordering::Acquire) == subscription)?;
    let bytes: Vec<u8> =
        place.text.iter().map(|b| b.load(Ordering::Relaxed)).take_while(|b| *b != 0).collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

// Runs within error handling of any process: it must not raise, and not wait.
unsafe extern "C-unwind" fn listen(error: *mut pg_sys::ErrorData) {
    unsafe {
        if let Some(error) = error.as_ref() {
            if error.elevel >= PgLogLevel::ERROR as i32 {
                if let Some(subscription) = subscription_of_this_worker() {
                    keep(subscription, error);
                }
            }
        }
        if let Some(previous) = PREVIOUS {
            previous(error);
        }
    }
}

/// An apply worker is known by its name (src/backend/replication/logical/launcher.c).
unsafe fn subscription_of_this_worker() -> Option<u32> {
    let worker = unsafe { pg_sys::MyBgworkerEntry.as_ref() }?;
    let name = unsafe { CStr::from_ptr(worker.bgw_name.as_ptr()) }.to_str().ok()?;
    let (kind, number) = name.split_once(" for subscription ")?;
    match kind.starts_with("logical replication") {
        true => number.split_whitespace().next()?.parse().ok(),
        false => None,
    }
}

unsafe fn keep(subscription: u32, error: &pg_sys::ErrorData) {
    let places = &BOARD.get().places;
    let claim = |p: &&Place| {
        let claimed =
            p.subscription.compare_exchange(0, subscription, Ordering::AcqRel, Ordering::Acquire);
        claimed.is_ok() || claimed == Err(subscription)
    };
    let known = places.iter().find(|p| p.subscription.load(Ordering::Acquire) == subscription);
    let Some(place) = known.or_else(|| places.iter().find(claim)) else { return };
    let mut at = 0;
    for (begin, text) in [("", error.message), (" ", error.detail), (" ", error.context)] {
        if text.is_null() {
            continue;
        }
        let text = unsafe { CStr::from_ptr(text.cast::<c_char>()) };
        for byte in begin.bytes().chain(text.to_bytes().iter().copied()) {
            if at + 1 < LENGTH {
                place.text[at].store(byte, Ordering::Relaxed);
                at += 1;
            }
        }
    }
    place.text[at].store(0, Ordering::Relaxed);
}
