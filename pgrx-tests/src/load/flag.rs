//! The cutover flag, as a pooler follows it: one poller for all clients.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::generator::Endpoints;
use crate::error::Result;
use crate::migration::{traffic, DESTINATION};
use crate::session::Session;

/// How often the flag is read.
const INTERVAL: Duration = Duration::from_millis(10);

/// Who takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Active {
    /// The source.
    Source,
    /// The shards.
    Shards,
}

/// The flag as last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Where writes go.
    pub active: Active,
    /// Whether writers are to hold back.
    pub paused: bool,
    /// Grows with every switch; 0 before there is a flag.
    pub epoch: i64,
}

impl Flag {
    pub(super) const BEGIN: Flag = Flag { active: Active::Source, paused: false, epoch: 0 };
}

/// A switch that the poller saw.
#[derive(Debug, Clone, Copy)]
pub struct Switch {
    /// When the new epoch was first read.
    pub at: Instant,
    /// The new epoch.
    pub epoch: i64,
    /// Who is active since.
    pub to: Active,
}

/// Reads the flag until the receivers are gone; returns the switches it saw.
pub(super) async fn follow(
    endpoints: Endpoints,
    flag: watch::Sender<Flag>,
    mut stop: watch::Receiver<bool>,
) -> Vec<Switch> {
    let mut switches = Vec::new();
    let mut session = None;
    let mut first = true;
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return switches,
        }
        let known = flag.borrow().epoch > 0;
        let Ok(seen) = read(&endpoints, &mut session, known).await else {
            session = None;
            continue;
        };
        let before = *flag.borrow();
        // A migration that has yet to begin, or the state of things when the
        // clients start, is no switch.
        if !std::mem::take(&mut first) && before.active != seen.active {
            switches.push(Switch { at: Instant::now(), epoch: seen.epoch, to: seen.active });
        }
        flag.send_if_modified(|flag| {
            let changed = *flag != seen;
            *flag = seen;
            changed
        });
    }
}

async fn read(endpoints: &Endpoints, session: &mut Option<Session>, known: bool) -> Result<Flag> {
    let open = match session {
        Some(open) if !open.is_closed() => open,
        _ => session.insert(endpoints.source.connect("follower").await?),
    };
    // Before there is an extension: no errors in the server's log for each look.
    if !known && open.text("SELECT to_regclass('reshard.traffic')::text").await?.is_none() {
        return Ok(Flag::BEGIN);
    }
    match traffic(open).await {
        Ok(seen) => Ok(Flag {
            active: match seen.active_cluster == DESTINATION {
                true => Active::Shards,
                false => Active::Source,
            },
            paused: seen.state == "paused",
            epoch: seen.epoch,
        }),
        // No migration declared yet: all goes to the source.
        Err(error) if !known && !error.is_disconnect() => Ok(Flag::BEGIN),
        Err(error) => Err(error),
    }
}
