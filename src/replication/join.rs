//! The other shards of a source know of the migration: their DDL guards watch its
//! tables, and no other migration begins there.
use crate::cluster::ShardNo;
use crate::error::{Error, Result};
use crate::remote::Connection;

/// What a shard of the source is told.
pub struct Joined<'a> {
    /// Tells the coordinating database from others.
    pub token: &'a str,
    /// The task there.
    pub task_id: i64,
    /// Its type.
    pub kind: &'a str,
    /// The source cluster.
    pub source: &'a str,
    /// The destination.
    pub destination: &'a str,
    /// The publication that says which tables move.
    pub publication: &'a str,
    /// What becomes of DDL.
    pub ddl: &'a str,
}

/// Tells a shard of the source. Repeatable.
///
/// # Errors
/// 55000 where it takes part in another migration; the server's.
pub async fn join(session: &Connection, shard: ShardNo, joined: &Joined<'_>) -> Result<()> {
    let other: Option<String> = session
        .value(
            "SELECT min(t.what) FROM ( \
                 SELECT format('task %s of another shard', j.task_id) AS what \
                   FROM reshard.joined_task AS j WHERE (j.token, j.task_id) <> ($1, $2) \
                 UNION ALL \
                 SELECT format('task %s of its own', t.id) FROM reshard.task AS t \
                  WHERE t.type IN ('reshard', 'copy_data', 'replicate') \
                    AND t.status IN ('pending', 'running', 'failed')) AS t",
            &[&joined.token, &joined.task_id],
        )
        .await?;
    if let Some(other) = other {
        return Err(Error::state(format!("{} takes part in another migration", session.label()))
            .detail(format!("It is {other}."))
            .hint("Complete or cancel it first."));
    }
    session
        .execute(
            "INSERT INTO reshard.joined_task \
                    (token, task_id, type, source, shard, destination, publication, ddl) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
            &[
                &joined.token,
                &joined.task_id,
                &joined.kind,
                &joined.source,
                &shard.as_i32(),
                &joined.destination,
                &joined.publication,
                &joined.ddl,
            ],
        )
        .await
        .map(|_| ())
}

/// The migration has ended.
///
/// # Errors
/// The server's.
pub async fn leave(session: &Connection, token: &str, task_id: i64) -> Result<()> {
    session
        .execute(
            "DELETE FROM reshard.joined_task WHERE token = $1 AND task_id = $2",
            &[&token, &task_id],
        )
        .await
        .map(|_| ())
}
