//! A connection to one server, with typed errors and the notices it received.

use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage};

use crate::error::{Error, Result};

/// One row as text, NULL as `None`.
pub type Row = Vec<Option<String>>;

/// An open connection. Statements go through the simple protocol, as in psql.
#[derive(Debug)]
pub struct Session {
    client: Client,
    notices: Arc<Mutex<Vec<String>>>,
    driver: JoinHandle<()>,
}

impl Session {
    /// Connects as the configuration says.
    pub async fn open(config: &Config) -> Result<Session> {
        let (client, mut connection) = config.connect(NoTls).await?;
        let notices = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&notices);
        let driver = tokio::spawn(async move {
            let mut messages =
                futures::stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notice(notice) = message {
                    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                    sink.push(format!("{}: {}", notice.severity(), notice.message()));
                }
            }
        });
        Ok(Session { client, notices, driver })
    }

    /// Connects over a unix socket in `folder`.
    pub async fn open_socket(
        folder: &Path,
        port: u16,
        user: &str,
        database: &str,
        application_name: &str,
    ) -> Result<Session> {
        let mut config = Config::new();
        config
            .host_path(folder)
            .port(port)
            .user(user)
            .dbname(database)
            .application_name(application_name);
        Session::open(&config).await
    }

    /// Runs one or more statements, rows are dropped.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// All rows of the statements.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Row>> {
        let messages = self.client.simple_query(sql).await?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// Number of rows that the last statement touched.
    pub async fn affected(&self, sql: &str) -> Result<u64> {
        let messages = self.client.simple_query(sql).await?;
        Ok(messages
            .iter()
            .rev()
            .find_map(|message| match message {
                SimpleQueryMessage::CommandComplete(count) => Some(*count),
                _ => None,
            })
            .unwrap_or(0))
    }

    /// First column of the first row; none for NULL and for no row.
    pub async fn text(&self, sql: &str) -> Result<Option<String>> {
        let rows = self.rows(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// First column of the first row as a value; an error where there is none.
    pub async fn one<T: FromStr>(&self, sql: &str) -> Result<T> {
        let text = self
            .text(sql)
            .await?
            .ok_or_else(|| Error::Unexpected(format!("no value from: {sql}")))?;
        text.parse()
            .map_err(|_| Error::Unexpected(format!("unreadable value \"{text}\" from: {sql}")))
    }

    /// First column of each row, NULL as an empty text.
    pub async fn column(&self, sql: &str) -> Result<Vec<String>> {
        let rows = self.rows(sql).await?;
        Ok(rows
            .into_iter()
            .map(|row| row.into_iter().next().flatten().unwrap_or_default())
            .collect())
    }

    /// Notices and warnings since the last call, as "SEVERITY: message".
    pub fn take_notices(&self) -> Vec<String> {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *notices)
    }

    /// Whether the connection is known to be gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Ends the connection at once, also when a statement is still running.
        self.driver.abort();
    }
}

/// `value` as an SQL literal.
pub fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    match value.contains('\\') {
        true => format!("E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}

/// `name` as an SQL identifier, always quoted.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
