//! Who is in the way on a server: the transactions that hold a lock, named so that
//! a DBA can find and end each, prepared ones included.
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::remote::Connection;

/// The text for one holder `l`: its session, or its prepared transaction, which
/// is known by the lock on its own number.
const WHO: &str = "CASE WHEN a.pid IS NOT NULL THEN \
        format('pid %s (%suser \"%s\", application \"%s\", %s, transaction open for %s, last query: %s)', \
               a.pid, CASE WHEN a.backend_type <> 'client backend' THEN a.backend_type || ', ' ELSE '' END, \
               coalesce(a.usename, ''), a.application_name, coalesce(a.state, 'running'), \
               date_trunc('second', clock_timestamp() - a.xact_start), \
               left(regexp_replace(a.query, '\\s+', ' ', 'g'), 100)) \
      ELSE coalesce((SELECT format('prepared transaction \"%s\" (user \"%s\", prepared %s ago)', p.gid, p.owner, \
                                   date_trunc('second', clock_timestamp() - p.prepared)) \
                       FROM pg_prepared_xacts AS p JOIN pg_locks AS x \
                         ON x.locktype = 'transactionid' AND x.transactionid = p.transaction \
                      WHERE x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction LIMIT 1), \
                    'a prepared transaction, see pg_prepared_xacts') END";

/// Holders `l` of an advisory lock of this database, apart from this session.
const ADVISORY: &str = "FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid \
      WHERE l.locktype = 'advisory' AND l.classid = $1::bigint::oid AND l.objid = $2::bigint::oid AND l.granted \
        AND l.pid IS DISTINCT FROM pg_backend_pid() \
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Who holds an advisory lock, oldest first.
///
/// # Errors
/// The server's.
pub async fn of_advisory(session: &Connection, key: (i64, i64)) -> Result<Vec<String>> {
    let sql = format!("SELECT coalesce(array_agg({WHO} ORDER BY a.xact_start), '{{}}') {ADVISORY}");
    session.value(&sql, &[&key.0, &key.1]).await
}

/// Ends the sessions that hold an advisory lock in a transaction older than
/// `age`; returns who they were. Prepared transactions have no session.
///
/// # Errors
/// The server's.
pub async fn end_advisory(
    session: &Connection,
    key: (i64, i64),
    age: Duration,
) -> Result<Vec<String>> {
    // Materialized: the planner must not call pg_terminate_backend() before it knows
    // who holds the lock.
    let sql = format!(
        "WITH holder AS MATERIALIZED (SELECT {WHO} AS who, a.pid {ADVISORY} \
                AND a.backend_type = 'client backend' \
                AND a.xact_start <= clock_timestamp() - make_interval(secs => $3)), \
            ended AS MATERIALIZED (SELECT h.who, pg_terminate_backend(h.pid) AS done FROM holder AS h) \
         SELECT coalesce(array_agg(e.who), '{{}}') FROM ended AS e WHERE e.done"
    );
    session.value(&sql, &[&key.0, &key.1, &age.as_secs_f64()]).await
}

/// Who holds a lock on a table; locks on a catalog of all databases belong to none.
///
/// # Errors
/// The server's.
async fn of_table(session: &Connection, table: &str) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT coalesce(array_agg(DISTINCT {WHO}), '{{}}') \
           FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid \
          WHERE l.relation = to_regclass($1) AND l.granted \
            AND l.pid IS DISTINCT FROM pg_backend_pid() \
            AND l.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))"
    );
    session.value(&sql, &[&table]).await
}

/// The 55P03 of a table that others hold, with who they are.
///
/// # Errors
/// The server's.
pub async fn error_of_table(session: &Connection, table: &str) -> Result<Error> {
    let who = of_table(session, table).await?.join("; ");
    let error = Error::new(
        Kind::LockNotAvailable,
        format!("could not lock table {table} on {}", session.label()),
    );
    Ok(error.detail(match who.is_empty() {
        true => "Nobody holds a lock on it any more.".to_owned(),
        false => format!("In the way: {who}."),
    }))
}
