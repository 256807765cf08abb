//! The frame around a scenario: a rig, a deadline, and what is printed when it fails.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Rig, RigOptions, Server};
use crate::error::{Error, Result};

/// Longest time a scenario may take, once its servers run.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// Runs `body` on a rig of its own. When it fails, panics or takes longer than
/// `deadline`, prints what the servers logged and what the extension recorded.
pub async fn run<F, Fut>(options: RigOptions, deadline: Duration, body: F) -> Result<()>
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let rig = Arc::new(Rig::start(options).await?);
    let mut task = tokio::spawn(body(Arc::clone(&rig)));
    let outcome = match tokio::time::timeout(deadline, &mut task).await {
        Ok(outcome) => outcome,
        Err(_) => {
            eprintln!("the scenario took longer than {deadline:?}");
            describe(&rig).await;
            task.abort();
            drop(task.await);
            return Err(Error::Timeout {
                what: "the end of the scenario".to_owned(),
                waited: deadline,
                last_seen: "see above".to_owned(),
            });
        }
    };
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            describe(&rig).await;
            Err(error)
        }
        Err(join) => {
            describe(&rig).await;
            drop(rig);
            match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(Error::Unexpected(error.to_string())),
            }
        }
    }
}

/// Prints the state of a rig for whoever has to find out what went wrong.
pub async fn describe(rig: &Rig) {
    for query in [
        "SELECT id, parent_id, type, status, phase, started_at, updated_at, finished_at, error, hint FROM reshard.tasks ORDER BY id",
        "SELECT * FROM reshard.traffic",
        "SELECT * FROM reshard.replication_slots",
        "SELECT * FROM reshard.table_copies",
        "SELECT * FROM reshard.verifications",
        "SELECT * FROM reshard.differences LIMIT 30",
        "SELECT * FROM reshard.schema_sync WHERE error IS NOT NULL",
        "SELECT * FROM reshard.events ORDER BY 1 DESC LIMIT 60",
    ] {
        print_query(&rig.source, query).await;
    }
    for server in rig.servers() {
        eprintln!("--- end of the log of {} ---", server.name());
        eprintln!("{}", server.log_tail(40));
    }
}

async fn print_query(server: &Server, query: &str) {
    eprintln!("--- {query} ---");
    let rows = async {
        let session = server.connect().await?;
        session.execute("SET statement_timeout = '5s'").await?;
        session.rows(query).await
    };
    match tokio::time::timeout(Duration::from_secs(10), rows).await {
        Ok(Ok(rows)) => {
            for row in rows {
                let fields: Vec<String> =
                    row.into_iter().map(|field| field.unwrap_or_else(|| "-".to_owned())).collect();
                eprintln!("{}", fields.join(" | "));
            }
        }
        Ok(Err(error)) => eprintln!("{error}"),
        Err(_) => eprintln!("no answer"),
    }
}
