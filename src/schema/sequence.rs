//! Statements that run one after the other, on one session of a shard, many of
//! them in one transaction. Materialized views are filled in one each: what of that fails
//! is told, and stops nothing, since it may need rows that don't come along.
use crate::cluster::ShardNo;
use crate::error::{Error, Policy, Result};
use crate::pg::xact;
use crate::schema::failure;
use crate::schema::session::Failed;
use crate::schema::stage::{Shard, Stage};
use crate::state;
use crate::state::event::Severity;
use crate::state::schema::Statement;

/// Statements of one transaction.
const CHUNK: usize = 100;

/// Runs statements in their order.
///
/// # Errors
/// That of the first one that failed, apart from views; those of its transaction are
/// undone and open again, those before it stay.
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
            Err(failed) => {
                let blamed = failed.at.is_some();
                let error = note_failure(stage, shard, &refs, failed)?;
                if !(blamed && is_refresh(&group[0]) && error.policy() == Policy::Fail) {
                    return Err(error);
                }
                xact::transaction(|| note_unfilled(stage, shard, &group[0], &error))?;
            }
        }
    }
    shard.give_back(session);
    Ok(())
}

fn is_refresh(statement: &Statement) -> bool {
    statement.kind == "refresh"
}

fn note_unfilled(stage: &Stage, shard: &Shard, view: &Statement, error: &Error) -> Result<()> {
    state::event::write(
        Some(stage.owner.task),
        Severity::Warning,
        "view_not_filled",
        &format!("{} could not be filled on {}", failure::object(view), shard.endpoint),
        serde_json::json!({ "error": error.one_line(), "sql": view.sql }),
    )
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

/// Cuts statements into transactions; what may fail by itself stands alone.
fn groups(statements: &[Statement]) -> impl Iterator<Item = &[Statement]> {
    statements
        .chunk_by(|a, b| !is_refresh(a) && !is_refresh(b))
        .flat_map(|together| together.chunks(CHUNK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_filled_in_transactions_of_their_own() {
        let of = |kind: &str| Statement::of(kind, "");
        let all = ["grant", "owner", "refresh", "refresh", "grant"].map(of);
        let sizes: Vec<usize> = groups(&all).map(<[Statement]>::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
        let many = vec![of("grant"); CHUNK + 1];
        assert_eq!(groups(&many).count(), 2);
    }
}
