//! Statements that run one after the other, on one session of a shard, many of
//! them in one transaction.
use crate::cluster::ShardNo;
use crate::error::{Error, Policy, Result};
use crate::pg::xact;
use crate::schema::failure;
use crate::schema::session::Failed;
use crate::schema::stage::{Shard, Stage};
use crate::state;
use crate::state::schema::Statement;

/// Statements of one transaction.
const CHUNK: usize = 100;

/// Runs statements in their order.
///
/// # Errors
/// That of the first one that failed; those of its transaction are undone and
/// open again, those before it stay.
pub async fn run(stage: &Stage, shard: &Shard, statements: &[Statement]) -> Result<()> {
    if statements.is_empty() {
        return Ok(());
    }
    let _permit = shard.permit().await?;
    let session = shard.take(stage).await?;
    for group in groups(statements) {
        let refs: Vec<&Statement> = group.iter().collect();
        let ordinals: Vec<i32> = group.iter().map(|s| s.ordinal).collect();
        xact::transaction_async(|| {
            state::schema::started(stage.owner.task, shard.no(), &ordinals)
        })?;
        match session.run(&stage.owner, &stage.preamble, &refs).await {
            Ok(()) => xact::transaction_async(|| {
                state::schema::succeeded(stage.owner.task, shard.no(), &ordinals)
            })?,
            Err(failed) => return Err(note_failure(stage, shard, &refs, failed)?),
        }
    }
    shard.give_back(session);
    Ok(())
}

/// Marks a group that didn't take effect; the error to report.
///
/// # Errors
/// The state tables could not be written.
pub fn note_failure(
    stage: &Stage,
    shard: &Shard,
    group: &[&Statement],
    Failed { at, error }: Failed,
) -> Result<Error> {
    let task = stage.owner.task;
    let no: ShardNo = shard.no();
    let ordinals: Vec<i32> = group.iter().map(|s| s.ordinal).collect();
    let culprit = at.and_then(|i| group.get(i));
    let error = match culprit {
        Some(statement) => failure::of_statement(&shard.endpoint, statement, &error),
        None => error,
    };
    // What passes by itself isn't a failure of the statement.
    let blamed = culprit.filter(|_| error.policy() == Policy::Fail);
    xact::transaction(|| {
        state::schema::undone(task, no, &ordinals)?;
        match blamed {
            Some(statement) => {
                state::schema::failed(task, no, statement.ordinal, &error.one_line())
            }
            None => Ok(()),
        }
    })?;
    Ok(error)
}

/// Cuts statements into transactions; those that can't run in one with others
/// stand alone.
fn groups(statements: &[Statement]) -> impl Iterator<Item = &[Statement]> {
    statements.chunks(CHUNK)
}
