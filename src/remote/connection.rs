//! A connection to one shard, with errors that say which shard it was.
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use crate::error::{Error, Kind, Result};
use crate::pg::settings::{BEGIN, NO_TIMEOUTS, OURS};
use crate::remote::conninfo::Conninfo;
use crate::remote::quote::ident;
use crate::remote::tls;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a session may: all addresses of the host, the login and the first settings.
const SESSION_TIMEOUT: Duration = Duration::from_secs(20);
/// After how long an unanswered packet ends a connection.
const TCP_TIMEOUT: Duration = Duration::from_secs(15);

/// Where a shard is: its cluster, its number, and how to connect.
#[derive(Clone)]
pub struct Endpoint {
    /// Name of the cluster.
    pub cluster: String,
    /// Number of the shard in the cluster.
    pub shard: u32,
    /// Connection string, password included.
    pub conninfo: Conninfo,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {} of cluster \"{}\"", self.shard, self.cluster)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?})", self.conninfo)
    }
}

/// What a connection is for; shown in `pg_stat_activity.application_name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Checks before a run and declarations.
    Preflight,
    /// Steering by the coordinator.
    Control,
    /// Holding a snapshot and its slot.
    Snapshot,
    /// Running schema statements.
    Schema,
    /// Loading a part.
    Copy,
    /// The lease of a fence.
    Fence,
    /// Having a source shard copy its parts.
    Node,
    /// Comparing rows.
    Verify,
    /// Having another source shard show how a task stands.
    Mirror,
}

impl Purpose {
    /// What `pg_stat_activity` shows.
    pub fn application_name(self) -> &'static str {
        match self {
            Self::Preflight => "reshard preflight",
            Self::Control => "reshard control",
            Self::Snapshot => "reshard snapshot",
            Self::Schema => "reshard schema",
            Self::Copy => "reshard copy",
            Self::Fence => "reshard fence",
            Self::Node => "reshard node",
            Self::Verify => "reshard verify",
            Self::Mirror => "reshard mirror",
        }
    }
}

/// An open connection. Dropping it closes the session.
pub struct Connection {
    client: Client,
    label: String,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The configuration of a connection to `endpoint`.
pub(super) fn config(endpoint: &Endpoint, purpose: Purpose) -> Result<tokio_postgres::Config> {
    let mut config = endpoint.conninfo.to_config()?;
    config
        .application_name(purpose.application_name())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_user_timeout(TCP_TIMEOUT)
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(3))
        .keepalives_retries(3);
    if config.get_hosts().is_empty() {
        return Err(Error::argument("invalid connection string")
            .detail(format!("The connection string of {endpoint} names no host."))
            .hint("Other servers use it too: give a host that every node and shard can reach."));
    }
    Ok(config)
}

/// Opens a session with settings that don't depend on the role's defaults.
///
/// # Errors
/// 08001 where the server can't be reached or does not answer, 28xxx where it refuses the
/// login, 42501 where the role is no superuser.
pub async fn connect(endpoint: &Endpoint, purpose: Purpose) -> Result<Connection> {
    let config = config(endpoint, purpose)?;
    in_time(endpoint, &config, open(endpoint, &config)).await
}

/// Ends the wait for a server that takes connections, but does not answer.
pub(super) async fn in_time(
    endpoint: &Endpoint,
    config: &tokio_postgres::Config,
    opening: impl Future<Output = Result<Connection>>,
) -> Result<Connection> {
    tokio::time::timeout(SESSION_TIMEOUT, opening).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Unreachable, format!("could not connect to {endpoint}"))
            .detail(format!(
                "{} did not answer within {} seconds.",
                address(config),
                SESSION_TIMEOUT.as_secs()
            ))
            .hint(
                "See whether PostgreSQL listens on that port, and whether that server, or a proxy \
                 in between, hangs.",
            ))
    })
}

/// Where a configuration leads to, for texts.
fn address(config: &tokio_postgres::Config) -> String {
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(folder) => folder.display().to_string(),
        })
        .collect();
    let ports: Vec<String> = config.get_ports().iter().map(ToString::to_string).collect();
    let port = if ports.is_empty() { "5432".to_owned() } else { ports.join(",") };
    format!("Host \"{}\", port {port},", hosts.join(","))
}

/// Logs in the ways that the connection string allows, one after the other, as libpq does:
/// with TLS, then without.
pub(super) async fn log_in<T, Fut>(
    endpoint: &Endpoint,
    connect: impl Fn(SslMode) -> Fut,
) -> Result<T>
where
    Fut: Future<Output = Result<std::result::Result<T, tokio_postgres::Error>>>,
{
    let mut modes = tls::attempts(&endpoint.conninfo)?.iter();
    loop {
        let Some(mode) = modes.next() else {
            return Err(Error::internal(format!("no way to connect to {endpoint} is left")));
        };
        match connect(*mode).await? {
            Ok(connected) => return Ok(connected),
            Err(error) if plain_may_do(&error) && modes.len() > 0 => {}
            Err(error) => return Err(connect_error(&endpoint.to_string(), &error)),
        }
    }
}

/// Whether a server that refuses a login may take it without TLS: pg_hba.conf tells the two
/// kinds of connections apart.
fn plain_may_do(error: &tokio_postgres::Error) -> bool {
    is_about_tls(error) || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

fn is_about_tls(error: &tokio_postgres::Error) -> bool {
    error.to_string().starts_with("error performing TLS handshake")
}

async fn open(endpoint: &Endpoint, config: &tokio_postgres::Config) -> Result<Connection> {
    let label = endpoint.to_string();
    let connector = &tls::connector(&endpoint.conninfo)?;
    let (client, connection) = log_in(endpoint, |mode| async move {
        Ok(config.clone().ssl_mode(mode).connect(connector.clone()).await)
    })
    .await?;
    // Reported by every server at the start of a session.
    let unprivileged = connection.parameter("is_superuser") == Some("off");
    let driver = tokio::spawn(async move {
        // The client's calls report the same error; here it has no one to tell.
        drop(connection.await);
    });
    let connection = Connection { client, label, driver };
    if unprivileged {
        return Err(no_superuser(endpoint, config.get_user()));
    }
    connection
        .batch(&format!(
            "{BEGIN}; {OURS}; {NO_TIMEOUTS}; \
             SET default_transaction_isolation = 'read committed'; \
             SET default_transaction_read_only = off; SET default_transaction_deferrable = off; \
             SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; \
             SET tcp_keepalives_count = 3; SET client_min_messages = warning; \
             SET row_security = off; SET synchronous_commit = on; SET reshard.ddl_guard = off; \
             COMMIT"
        ))
        .await?;
    Ok(connection)
}

impl Connection {
    /// Which shard this is, for texts.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The client itself, for COPY.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Runs statements without parameters, in one round trip.
    ///
    /// # Errors
    /// The server's, with the shard named.
    pub async fn batch(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(|e| self.error(&e))
    }

    /// Rows of a query with parameters.
    ///
    /// # Errors
    /// The server's, with the shard named.
    pub async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.client.query(sql, params).await.map_err(|e| self.error(&e))
    }

    /// The first row of a query that always has one.
    ///
    /// # Errors
    /// The server's, or XX000 where there is no row.
    pub async fn one(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        let rows = self.query(sql, params).await?;
        rows.into_iter()
            .next()
            .ok_or_else(|| Error::internal(format!("a query on {} returned no row", self.label)))
    }

    /// A single value that a row's first column holds.
    ///
    /// # Errors
    /// As [`Connection::one`], or XX000 where it is of another type.
    pub async fn value<T>(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<T>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        self.one(sql, params).await?.try_get(0).map_err(|e| self.error(&e))
    }

    /// Runs a statement with parameters; the number of rows it touched.
    ///
    /// # Errors
    /// The server's, with the shard named.
    pub async fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        self.client.execute(sql, params).await.map_err(|e| self.error(&e))
    }

    /// Values of the first row of a statement sent as text; none without a row.
    ///
    /// # Errors
    /// The server's, with the shard named.
    pub async fn text_row(&self, sql: &str) -> Result<Option<Vec<Option<String>>>> {
        let messages = self.client.simple_query(sql).await.map_err(|e| self.error(&e))?;
        Ok(messages.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
            }
            _ => None,
        }))
    }

    /// All rows of statements sent as text, in one round trip.
    ///
    /// # Errors
    /// The server's, with the shard named.
    pub async fn text_rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let messages = self.client.simple_query(sql).await.map_err(|e| self.error(&e))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// Whether the session is known to be lost.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Our error for one of this connection.
    pub fn error(&self, error: &tokio_postgres::Error) -> Error {
        server_error(&self.label, error)
    }

    pub(super) fn from_parts(
        client: Client,
        label: String,
        driver: tokio::task::JoinHandle<()>,
    ) -> Self {
        Self { client, label, driver }
    }
}

/// Ends the sessions of this database that are for that purpose, and waits for it.
///
/// # Errors
/// The server's; 55P03 where one does not end.
pub async fn end_sessions(session: &Connection, purpose: Purpose) -> Result<()> {
    let name = purpose.application_name();
    let found: Vec<i32> = session
        .value(
            "SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity \
              WHERE application_name = $1 AND datname = current_database() \
                AND pid <> pg_backend_pid()",
            &[&name],
        )
        .await?;
    if found.is_empty() {
        return Ok(());
    }
    // False also where one has ended by itself meanwhile: who is left tells.
    let terminate = "SELECT pg_terminate_backend(p.pid, 10000) FROM unnest($1::int[]) AS p (pid)";
    session.query(terminate, &[&found]).await?;
    let ended: bool = session
        .value(
            "SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity \
                                 WHERE pid = ANY ($1) AND application_name = $2)",
            &[&found, &name],
        )
        .await?;
    match ended {
        true => Ok(()),
        false => Err(Error::new(
            Kind::LockNotAvailable,
            format!("a session \"{name}\" on {} does not end", session.label),
        )
        .hint(format!("See pg_stat_activity there for application_name \"{name}\"."))),
    }
}

fn no_superuser(endpoint: &Endpoint, role: Option<&str>) -> Error {
    let message = match role {
        Some(role) => format!("role {} is no superuser on {endpoint}", ident(role)),
        None => format!("the role of the connection string is no superuser on {endpoint}"),
    };
    Error::new(Kind::Privilege, message)
        .detail("Subscriptions, replication slots and settings of the apply need one.")
        .hint(format!(
            "On that server: ALTER ROLE {} SUPERUSER;",
            role.map_or_else(|| "...".to_owned(), ident)
        ))
}

/// Whether a login was refused by PgBouncer, which lets no replication through.
pub fn is_from_pooler(message: &str) -> bool {
    message.contains("unsupported startup parameter: replication")
}

/// What went wrong while connecting.
fn connect_error(label: &str, error: &tokio_postgres::Error) -> Error {
    if let Some(db) = error.as_db_error() {
        let hint = match db.code().code() {
            "28P01" | "28000" => {
                "Check user, password and pg_hba.conf of that server; reshard_add_shard() takes \
                 the new password of a shard that is declared."
            }
            _ if is_from_pooler(db.message()) => {
                "A connection pooler is at that address: declare that of the server itself."
            }
            "3D000" => "Create the database there, or correct dbname.",
            "53300" => "Raise max_connections there, or lower reshard.max_copy_workers.",
            _ => "See the log of that server.",
        };
        return Error::new(
            Kind::Server(db.code().code().to_owned()),
            format!("could not connect to {label}"),
        )
        .detail(format!("{}: {}.", db.severity(), db.message().trim_end_matches('.')))
        .hint(hint);
    }
    let cause =
        std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let hint = match is_about_tls(error) {
        true => "Check sslmode, sslrootcert and the other keywords of TLS in its connection string, and ssl in its postgresql.conf.",
        false => NO_ANSWER,
    };
    unreachable(label, &cause, hint)
}

/// A hint for a server that nobody answers for.
pub(super) const NO_ANSWER: &str =
    "Check host and port, that the server runs, and that it listens on that address.";

/// A server that can't be reached, and why.
pub(super) fn unreachable(label: &str, cause: &str, hint: &str) -> Error {
    Error::new(Kind::Unreachable, format!("could not connect to {label}"))
        .detail(format!("{}.", sentence(cause)))
        .hint(hint)
}

/// What a statement on another server failed with.
pub(super) fn server_error(label: &str, error: &tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        let cause =
            std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
        return Error::new(Kind::ConnectionLost, format!("connection to {label} was lost"))
            .detail(format!("{}.", sentence(&cause)));
    };
    let mut detail = format!("{} {}: {}.", db.severity(), db.code().code(), db.message());
    for more in [db.detail(), db.where_()].into_iter().flatten() {
        detail.push(' ');
        detail.push_str(more);
    }
    let mut out = Error::new(
        Kind::Server(db.code().code().to_owned()),
        format!("statement failed on {label}"),
    )
    .detail(detail);
    out.hint = db.hint().map(str::to_owned);
    out
}

fn sentence(text: &str) -> String {
    let mut chars = text.trim_end_matches('.').chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}
