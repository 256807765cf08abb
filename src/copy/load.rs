//! The shard's side of a part: one transaction with the COPY and the row of
//! `reshard.copied_part` that says that it has been here.
use bytes::{Buf, Bytes};
use futures::SinkExt;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_postgres::Statement;

use crate::error::{Error, Kind, Result, UNIQUE_VIOLATION};
use crate::pg::encode::Format;
use crate::remote::{self, quote, Connection, Endpoint, Purpose};

/// One message of the protocol is not larger than this.
const WRITE: usize = 256 * 1024;

/// What is sent to a shard of one part.
#[derive(Debug)]
pub(super) struct Job {
    /// The COPY statement.
    pub(super) copy: String,
    /// Who copies: this database, the task and its wave.
    pub(super) token: String,
    /// The task.
    pub(super) task_id: i64,
    /// Its wave.
    pub(super) wave: i32,
    /// The table.
    pub(super) table_id: i32,
    /// The part.
    pub(super) part_no: i32,
    /// The part was begun before: a shard may have it.
    pub(super) again: bool,
}

impl Job {
    /// The COPY statement for these columns.
    pub(super) fn copy_statement(name: &str, columns: &[String], format: Format) -> String {
        let columns: Vec<String> = columns.iter().map(|c| quote::ident(c)).collect();
        let format = match format {
            Format::Binary => "binary",
            Format::Text => "text",
        };
        format!("COPY {name} ({}) FROM STDIN (FORMAT {format})", columns.join(", "))
    }

    fn mark(&self, rows: u64) -> String {
        format!(
            "INSERT INTO reshard.copied_part (token, task_id, wave, table_id, part_no, rows) \
             VALUES ({}, {}, {}, {}, {}, {rows}); COMMIT",
            quote::literal(&self.token),
            self.task_id,
            self.wave,
            self.table_id,
            self.part_no,
        )
    }
}

/// What a shard is given.
#[derive(Debug)]
pub(super) enum Load {
    /// Bytes of the COPY.
    Data(Bytes),
    /// The end: the part has so many rows for this shard.
    End(u64),
}

/// A shard and the session that is kept from part to part.
pub(super) struct Link {
    endpoint: Endpoint,
    session: Option<Session>,
}

struct Session {
    connection: Connection,
    prepared: Option<(String, Statement)>,
}

impl Link {
    /// A link that is not connected yet.
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, session: None }
    }

    /// Loads a part and commits it, exactly once however often it is called.
    /// Where the sender is dropped before the end, nothing stays on the shard.
    ///
    /// # Errors
    /// The shard's, with the shard named. The session is given up then.
    pub(super) async fn load(&mut self, job: &Job, data: UnboundedReceiver<Load>) -> Result<()> {
        let mut session = match self.session.take() {
            Some(session) if !session.connection.is_closed() => session,
            _ => Session::open(&self.endpoint).await?,
        };
        if let Err(error) = session.load(job, data).await {
            // An earlier try whose session was lost may have committed meanwhile.
            if error.sqlstate() != UNIQUE_VIOLATION {
                return Err(error);
            }
            session = Session::open(&self.endpoint).await?;
            if !session.has_it(job).await? {
                return Err(error);
            }
        }
        self.session = Some(session);
        Ok(())
    }
}

impl Session {
    async fn open(endpoint: &Endpoint) -> Result<Self> {
        let connection = remote::connect(endpoint, Purpose::Copy).await?;
        connection.batch("SET session_replication_role = replica").await?;
        Ok(Self { connection, prepared: None })
    }

    async fn load(&mut self, job: &Job, mut data: UnboundedReceiver<Load>) -> Result<()> {
        if job.again && self.has_it(job).await? {
            while let Some(Load::Data(_)) = data.recv().await {}
            return Ok(());
        }
        let statement = self.begin(job).await?;
        let connection = &self.connection;
        let failed = |error: &tokio_postgres::Error| connection.error(error);
        let sink =
            connection.client().copy_in::<_, Bytes>(&statement).await.map_err(|e| failed(&e))?;
        let mut sink = std::pin::pin!(sink);
        let rows = loop {
            match data.recv().await {
                Some(Load::Data(mut bytes)) => {
                    while bytes.has_remaining() {
                        let piece = bytes.split_to(bytes.len().min(WRITE));
                        if sink.feed(piece).await.is_err() {
                            // The session has ended; only its end says why.
                            let cause = sink.as_mut().finish().await;
                            return Err(cause.map_or_else(|e| failed(&e), |_| lost(connection)));
                        }
                    }
                }
                Some(Load::End(rows)) => break rows,
                // The scan has failed: the session ends, and the transaction with it.
                None => return Err(given_up(connection)),
            }
        };
        let copied = sink.as_mut().finish().await.map_err(|e| failed(&e))?;
        // Before the mark: what has it is never looked at again.
        if copied != rows {
            return Err(refused_rows(connection, copied, rows));
        }
        connection.batch(&job.mark(rows)).await
    }

    /// Opens the transaction and prepares the COPY, in one round trip.
    async fn begin(&mut self, job: &Job) -> Result<Statement> {
        let connection = &self.connection;
        let statement = match &self.prepared {
            Some((sql, statement)) if *sql == job.copy => {
                connection.batch("BEGIN").await?;
                statement.clone()
            }
            _ => {
                let (begun, prepared) = futures::future::join(
                    connection.batch("BEGIN"),
                    connection.client().prepare(&job.copy),
                )
                .await;
                begun?;
                let statement = prepared.map_err(|e| connection.error(&e))?;
                self.prepared = Some((job.copy.clone(), statement.clone()));
                statement
            }
        };
        Ok(statement)
    }

    async fn has_it(&self, job: &Job) -> Result<bool> {
        self.connection
            .value(
                "SELECT EXISTS (SELECT FROM reshard.copied_part WHERE token = $1 AND task_id = $2 \
                 AND wave = $3 AND table_id = $4 AND part_no = $5)",
                &[&job.token, &job.task_id, &job.wave, &job.table_id, &job.part_no],
            )
            .await
    }
}

fn lost(connection: &Connection) -> Error {
    Error::new(Kind::ConnectionLost, format!("connection to {} was lost", connection.label()))
}

fn given_up(connection: &Connection) -> Error {
    Error::new(Kind::Cancelled, format!("copy to {} was given up", connection.label()))
}

fn refused_rows(connection: &Connection, copied: u64, rows: u64) -> Error {
    Error::new(Kind::Mismatch, format!("{} took {copied} rows of {rows}", connection.label()))
        .detail("Nothing of this part was committed there.")
        .hint(
            "Look there for a BEFORE INSERT trigger of the table that is enabled ALWAYS or \
             REPLICA and drops rows, and disable it.",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(
            Job::copy_statement("\"S\".\"t\"", &["a".into(), "B \"x\"".into()], Format::Binary),
            "COPY \"S\".\"t\" (\"a\", \"B \"\"x\"\"\") FROM STDIN (FORMAT binary)"
        );
    }
}
