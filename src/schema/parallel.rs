//! Statements that don't depend on each other, on several sessions of a shard:
//! keys, indexes, foreign keys.
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};

use crate::error::{Error, Result};
use crate::pg::xact;
use crate::schema::claim::{claims, conflict, Claim};
use crate::schema::sequence::note_failure;
use crate::schema::session::{self, Failed, Session};
use crate::schema::stage::{Shard, Stage};
use crate::state;
use crate::state::schema::Statement;

/// How often a statement that lost a deadlock, or waited too long for a lock,
/// is tried again at once.
const ATTEMPTS: u32 = 5;
/// How often the progress of a build is kept.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Runs statements in any order, at most as many at a time as the shard has
/// permits. After a failure none is begun; those that run go to their end, so
/// that their work isn't lost. Rows that refer to none fail one foreign key: the
/// others are looked at all the same.
///
/// # Errors
/// That of the first one that failed.
pub async fn run(stage: &Stage, shard: &Shard, statements: &[Statement]) -> Result<()> {
    let mut pending: Vec<(&Statement, Vec<Claim>)> =
        statements.iter().map(|s| (s, claims(s))).collect();
    let mut held: Vec<(i32, Vec<Claim>)> = Vec::new();
    let mut running = FuturesUnordered::new();
    let mut failure: Option<Error> = None;
    loop {
        let goes_on = failure.as_ref().is_none_or(|failed| failed.sqlstate() == "23503");
        while goes_on && running.len() < shard.limit() {
            let free = |(_, wanted): &(&Statement, Vec<Claim>)| {
                !held.iter().any(|(_, taken)| conflict(taken, wanted))
            };
            let Some(next) = pending.iter().position(free) else { break };
            let (statement, wanted) = pending.remove(next);
            held.push((statement.ordinal, wanted));
            running.push(async move { (statement.ordinal, one(stage, shard, statement).await) });
        }
        let Some((ordinal, outcome)) = running.next().await else { break };
        held.retain(|(other, _)| *other != ordinal);
        if let Err(error) = outcome {
            failure.get_or_insert(error);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Runs one statement, on a session of its own for that time.
async fn one(stage: &Stage, shard: &Shard, statement: &Statement) -> Result<()> {
    let _permit = shard.permit().await?;
    let task = stage.owner.task;
    let ordinals = [statement.ordinal];
    let mut attempt = 1;
    loop {
        let session = shard.take(stage).await?;
        xact::transaction_async(|| state::schema::started(task, shard.no(), &ordinals))?;
        let Err(failed) = watched(stage, shard, &session, statement).await else {
            shard.give_back(session);
            return xact::transaction_async(|| {
                state::schema::succeeded(task, shard.no(), &ordinals)
            });
        };
        if done_by_another(stage, shard, statement, &failed).await? {
            return xact::transaction_async(|| {
                state::schema::succeeded(task, shard.no(), &ordinals)
            });
        }
        let locked = matches!(failed.error.sqlstate(), "40P01" | "55P03");
        if !locked || attempt == ATTEMPTS {
            return Err(note_failure(stage, shard, &[statement], failed)?);
        }
        attempt += 1;
    }
}

/// Whether another task of this database ran the statement while this one waited
/// for its locks.
async fn done_by_another(
    stage: &Stage,
    shard: &Shard,
    statement: &Statement,
    failed: &Failed,
) -> Result<bool> {
    if failed.at.is_none() {
        return Ok(false);
    }
    let session = shard.take(stage).await?;
    let applied = session.applied(&stage.owner, std::slice::from_ref(statement)).await?;
    shard.give_back(session);
    Ok(!applied.is_empty())
}

/// Runs a statement and keeps its progress meanwhile.
async fn watched(
    stage: &Stage,
    shard: &Shard,
    session: &Session,
    statement: &Statement,
) -> Result<(), Failed> {
    let list = [statement];
    let concurrent = match session::concurrent(statement) {
        Some(text) if session.is_live().await? => Some(text),
        _ => None,
    };
    let work = async {
        match concurrent {
            Some(text) => {
                session.build_concurrently(&stage.owner, &stage.preamble, statement, text).await
            }
            None => session.run(&stage.owner, &stage.preamble, &list).await,
        }
    };
    tokio::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
        }
        tokio::select! {
            outcome = &mut work => return outcome,
            seen = shard.monitor.of(&shard.endpoint, session.pid) => match seen {
                Ok(Some(seen)) => xact::transaction_async(|| {
                    let (task, ordinal) = (stage.owner.task, statement.ordinal);
                    state::schema::progress(task, shard.no(), ordinal, seen.percent, &seen.phase)
                })?,
                Ok(None) => {}
                // The build itself is none the worse for it.
                Err(error) => pgrx::debug1!("reshard: {}", error.one_line()),
            },
        }
    }
}
