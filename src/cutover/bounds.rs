//! How long a switch waits for what, and what it does then. Read once at its
//! beginning: settings that change in the middle are for the next one.
use std::time::Duration;

use crate::gucs::{self, DrainAction};

/// The bounds of one switch.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// From the lock to the commit point.
    pub hold: Duration,
    /// For open transactions, once or twice.
    pub drain: Duration,
    /// What becomes of those that are still open then.
    pub action: DrainAction,
    /// For registered poolers.
    pub poolers: Duration,
    /// Between the announcement and the lock.
    pub grace: Duration,
}

impl Bounds {
    /// As the server's settings say now. A dry run ends nobody's session.
    pub fn now(is_dry: bool) -> Self {
        let hold = milliseconds(gucs::CUTOVER_TIMEOUT.get());
        Self {
            hold,
            drain: milliseconds(gucs::DRAIN_TIMEOUT.get()).min(hold),
            action: if is_dry { DrainAction::Abort } else { gucs::DRAIN_ACTION.get() },
            poolers: milliseconds(gucs::POOLER_ACK_TIMEOUT.get()),
            grace: milliseconds(gucs::PAUSE_GRACE.get()),
        }
    }

    /// How long a flow's marker may take just before anyone is held: it has to make
    /// that way once more while writers wait, and that isn't all.
    pub fn marker(&self) -> Duration {
        self.hold / 2
    }

    /// When a server lets go of the lock by itself, if nobody says anything.
    pub fn lease(&self) -> Duration {
        self.hold + Duration::from_secs(1)
    }
}

fn milliseconds(setting: i32) -> Duration {
    Duration::from_millis(setting.unsigned_abs().into())
}
