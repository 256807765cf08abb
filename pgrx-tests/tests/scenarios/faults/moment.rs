//! Where in a cutover a fault strikes: at a failpoint of the library, or where a
//! lock of another session holds the cutover up.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reshard_scenarios::migration::traffic;
use reshard_scenarios::wait::{wait_for, wait_until, Seen};
use reshard_scenarios::{Error, Result, Rig, Session};

use super::stage::Way;

/// Longest wait until a cutover comes by.
const COME_BY: Duration = Duration::from_secs(40);
const POOLER: &str = "holdup";

/// Failpoints that both ways come by.
pub const MOMENTS_BOTH: &[&str] = &[
    "prepare.written",
    "prepare.partial",
    "prepare.done",
    "pause.written",
    "pause.done",
    "lease.written",
    "lease.done",
    "sequences.written",
    "sequences.done",
    "barrier.written",
    "barrier.done",
    "handoff.written",
    "handoff.partial",
    "handoff.done",
    "latch.written",
    "latch.done",
    "commit.written",
    "commit.partial",
    "commit.done",
    "open.written",
    "open.done",
    "stop_flow.written",
    "stop_flow.done",
    "start_flow.written",
    "start_flow.done",
];
/// Failpoints between two shards that take the writes next.
pub const MOMENTS_FORTH: &[&str] = &["sequences.partial", "open.partial", "stop_flow.partial"];
/// Failpoints between two shards that took the writes before.
pub const MOMENTS_BACK: &[&str] = &["lease.partial", "latch.partial", "start_flow.partial"];

/// A step that is held up from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// By a pooler that does not acknowledge.
    Pause,
    /// By a transaction that has written.
    Lease,
    /// By a lock on the table of markers of a subscriber.
    Barrier,
    /// By a lock on the flag's row.
    Commit,
    /// By a lock on the flag's row of a server that is to be opened.
    Open,
    /// By a lock on the subscriptions of a server.
    StopFlow,
}

impl Hold {
    fn step(self) -> String {
        match self {
            Hold::StopFlow => "stop_flow".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        }
    }
}

/// Where a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// `<step>.<moment>` of the library.
    Failpoint(&'static str),
    /// A step that is held up.
    Held(Hold),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Moment::Failpoint(point) => f.pad(point),
            Moment::Held(hold) => f.pad(&hold.step()),
        }
    }
}

impl Moment {
    /// Whether the switch is committed by then.
    pub fn is_committed(self) -> bool {
        match self {
            Moment::Failpoint(point) => {
                point == "commit.done"
                    || ["open", "stop_flow", "start_flow"]
                        .iter()
                        .any(|step| point.starts_with(step))
            }
            Moment::Held(hold) => matches!(hold, Hold::Open | Hold::StopFlow),
        }
    }
}

/// A cutover that has come to its moment. Let go by [`Reached::release`].
pub enum Reached {
    /// The worker is there until this file is gone, or has acted already.
    File(PathBuf),
    /// Sessions whose locks it waits for.
    Sessions(Vec<Session>),
    /// A pooler that it waits for.
    Pooler,
}

impl Reached {
    /// Lets the cutover go on.
    pub async fn release(self, rig: &Rig) -> Result<()> {
        match self {
            Reached::File(file) => drop(std::fs::remove_file(file)),
            Reached::Sessions(sessions) => drop(sessions),
            Reached::Pooler => forget_pooler(rig).await?,
        }
        Ok(())
    }
}

/// The pooler is gone.
pub async fn forget_pooler(rig: &Rig) -> Result<()> {
    rig.source.execute(&format!("DELETE FROM reshard.pooler WHERE name = '{POOLER}'")).await
}

/// Makes the next cutover act, or wait, at a failpoint.
pub fn arm(rig: &Rig, point: &str, action: &str) {
    let file = rig.source.data().join("reshard.failpoint");
    drop(std::fs::remove_file(hit(rig)));
    std::fs::write(file, format!("{point} {action}\n")).expect("the failpoint's file");
}

fn hit(rig: &Rig) -> PathBuf {
    rig.source.data().join("reshard.failpoint.hit")
}

/// Waits until the cutover has come to the failpoint.
pub async fn at_failpoint(rig: &Rig) -> Result<Reached> {
    wait_until(COME_BY, "the cutover to reach the failpoint", || async { Ok(hit(rig).exists()) })
        .await?;
    Ok(Reached::File(hit(rig)))
}

/// Asks for a cutover and holds it up at a step. Its limits are short: on a busy machine
/// one is called off before it comes there, and another is asked for.
pub async fn held(rig: &Rig, hold: Hold, way: Way, ask: &str) -> Result<Reached> {
    for _ in 0..5 {
        if let Some(reached) = hold_up(rig, hold, way, ask).await? {
            return Ok(reached);
        }
        forget_pooler(rig).await?;
    }
    Err(Error::Unexpected(format!("no cutover came to step {}", hold.step())))
}

async fn hold_up(rig: &Rig, hold: Hold, way: Way, ask: &str) -> Result<Option<Reached>> {
    let source = rig.source.connect().await?;
    source.execute(&format!("SELECT reshard_pooler_ack('{POOLER}', 0, 'open')")).await?;
    source.execute(ask).await?;
    let announced = "SELECT count(*) FROM reshard.traffic WHERE state = 'paused'";
    if !comes_to(&source, &source, announced, "the announcement of the pause").await? {
        return Ok(None);
    }
    if hold == Hold::Pause {
        return Ok(Some(Reached::Pooler));
    }
    let (old, new) = match way {
        Way::Forth => (&rig.source, &rig.shards[1]),
        Way::Back => (&rig.shards[1], &rig.source),
    };
    let (server, lock) = match hold {
        Hold::Lease => (old, "UPDATE settings SET stamp = stamp WHERE id = 1"),
        Hold::Barrier => (new, "LOCK TABLE reshard.marker IN ACCESS EXCLUSIVE MODE"),
        Hold::Commit => (&rig.source, "SELECT FROM reshard.traffic FOR UPDATE"),
        Hold::Open => (new, "SELECT FROM reshard.traffic FOR UPDATE"),
        Hold::StopFlow => (new, "LOCK TABLE pg_catalog.pg_subscription IN SHARE MODE"),
        Hold::Pause => unreachable!("has no lock"),
    };
    let (session, watcher) = (server.connect().await?, server.connect().await?);
    session.execute(&format!("BEGIN; {lock}")).await?;
    let epoch = traffic(&source).await?.epoch;
    source.execute(&format!("SELECT reshard_pooler_ack('{POOLER}', {epoch}, 'paused')")).await?;
    // What waits there, and for what, differs: the server itself says that it does.
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    let what = format!("the cutover to wait in step {}", hold.step());
    if !comes_to(&source, &watcher, waiting, &what).await? {
        return Ok(None);
    }
    // The pooler is gone before the fault: it must not hold up the next cutover.
    forget_pooler(rig).await?;
    Ok(Some(Reached::Sessions(vec![session])))
}

/// Waits until a server counts any; false where the cutover has ended before.
async fn comes_to(source: &Session, server: &Session, asked: &str, what: &str) -> Result<bool> {
    wait_for(COME_BY, what, || async {
        if server.one::<i64>(asked).await? > 0 {
            return Ok(Seen::Done(true));
        }
        let to_do = "SELECT count(*) FROM reshard.intent WHERE handled_at IS NULL";
        Ok(match source.one::<i64>(to_do).await? {
            0 => Seen::Done(false),
            _ => Seen::NotYet("no".to_owned()),
        })
    })
    .await
}

/// Leaves nothing behind for the next case.
pub async fn clear(rig: &Rig) -> Result<()> {
    drop(std::fs::remove_file(rig.source.data().join("reshard.failpoint")));
    drop(std::fs::remove_file(hit(rig)));
    forget_pooler(rig).await
}
