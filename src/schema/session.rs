//! A session on a shard that runs schema statements, each group of them in one
//! transaction together with the note that they took effect.
use futures::future::join_all;

use crate::cluster::ShardNo;
use crate::error::{Error, Kind, Result};
use crate::pg::xact::transaction;
use crate::remote::quote::literal;
use crate::remote::{self, Connection, Endpoint, Purpose};
use crate::schema::claim::identifier;
use crate::schema::noted;
use crate::schema::stage::Phase;
use crate::state;
use crate::state::schema::{Applied, Statement};

/// Our own settings, after those of the dump. A statement waits for a lock, but
/// not for ever; it ends soon after the worker that wanted it is gone.
const SETTINGS: &[&str] = &[
    "SET lock_timeout = '30s'",
    "SET session_replication_role = origin",
    "SET synchronous_commit = on",
    "SET client_connection_check_interval = '1s'",
];

/// A session on a shard.
pub struct Session {
    connection: Connection,
    /// Process number of its backend.
    pub pid: i32,
}

/// Whose statements run: a task of this database.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Tells this database from others that use the same shard.
    pub token: String,
    /// The task.
    pub task: i64,
}

impl Owner {
    /// The advisory lock that every transaction with schema statements holds.
    fn lock_key(&self) -> String {
        format!("hashtextextended({}, 0)", literal(&format!("reshard schema {}", self.token)))
    }
}

/// A group of statements that did not take effect.
pub struct Failed {
    /// Which of them failed; none if it was none of them in particular.
    pub at: Option<usize>,
    /// What happened.
    pub error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { at: None, error }
    }
}

impl Session {
    /// Opens a session and runs the plan's preamble.
    ///
    /// # Errors
    /// As [`remote::connect`], or the shard's.
    pub async fn open(shard: &Endpoint, preamble: &[String]) -> Result<Self> {
        let connection = remote::connect(shard, Purpose::Schema).await?;
        let settings = preamble.iter().map(String::as_str).chain(SETTINGS.iter().copied());
        let sent: Vec<&str> = settings.collect();
        let answers = join_all(sent.iter().map(|sql| connection.batch(sql))).await;
        for (sql, answer) in sent.iter().zip(answers) {
            match answer {
                // A setting that this server doesn't know needs no value: a newer
                // server's dump sets transaction_timeout, for instance.
                Err(error) if is_setting(sql) && error.sqlstate() == "42704" => {}
                // Not every system can watch a connection.
                Err(error)
                    if sql.contains("client_connection_check_interval")
                        && error.sqlstate() == "22023" => {}
                other => other?,
            }
        }
        let pid = connection.value("SELECT pg_backend_pid()", &[]).await?;
        Ok(Self { connection, pid })
    }

    /// Whether the session is known to be lost.
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Waits until no transaction with schema statements of this database is open
    /// on the shard: those of a worker that died.
    ///
    /// # Errors
    /// 55P03 where one goes on.
    pub async fn wait_for_earlier(&self, owner: &Owner) -> Result<()> {
        let sql = format!("BEGIN; SELECT pg_advisory_xact_lock({}); COMMIT", owner.lock_key());
        let Err(error) = self.connection.batch(&sql).await else {
            return Ok(());
        };
        if !self.is_closed() {
            self.connection.batch("ROLLBACK").await?;
        }
        if error.kind != Kind::Server("55P03".to_owned()) {
            return Err(error);
        }
        Err(Error::new(
            Kind::LockNotAvailable,
            format!("earlier schema statements still run on {}", self.connection.label()),
        )
        .hint("See sessions with application_name \"reshard schema\" in pg_stat_activity there."))
    }

    /// Which of the statements took effect here, now or by an earlier task, and
    /// whose objects are still the same. Of an earlier task those alone that made
    /// something: what others did may have been undone unseen, and can be repeated.
    ///
    /// # Errors
    /// The shard's.
    pub async fn applied(&self, owner: &Owner, statements: &[Statement]) -> Result<Vec<Applied>> {
        let statements: Vec<&Statement> = statements.iter().collect();
        let sql = format!(
            "SELECT a.digest, a.task_id <> $3 FROM {} \
               JOIN reshard.applied_statement AS a ON a.digest = e.digest \
              WHERE a.token = $2 AND a.objects = o.objects \
                AND (a.task_id = $3 OR cardinality(o.own) > 0)",
            noted::with_objects(&statements)
        );
        let sent = noted::sent(&statements);
        let rows = self.connection.query(&sql, &[&sent, &owner.token, &owner.task]).await?;
        rows.iter()
            .map(|row| {
                let read = |e: tokio_postgres::Error| self.connection.error(&e);
                Ok(Applied {
                    digest: row.try_get(0).map_err(read)?,
                    earlier: row.try_get(1).map_err(read)?,
                })
            })
            .collect()
    }

    /// Learns what of a phase the shard has noted as applied.
    ///
    /// # Errors
    /// The shard's; the state tables could not be written.
    pub async fn reconcile(&self, owner: &Owner, shard: ShardNo, phase: Phase) -> Result<()> {
        let (task, phase) = (owner.task, phase.as_str());
        let open = transaction(|| state::schema::open(task, shard, phase))?;
        if open.is_empty() {
            return Ok(());
        }
        let applied = self.applied(owner, &open).await?;
        transaction(|| state::schema::reconcile(task, shard, phase, &applied))
    }

    /// Its connection, for statements without a note.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Runs statements in order, all or none of them, each exactly once.
    ///
    /// The statements are sent without waiting for one another's answers: after
    /// a failed one the server refuses the rest of the transaction.
    ///
    /// # Errors
    /// The statement that failed; all of them are undone then.
    pub async fn run(
        &self,
        owner: &Owner,
        preamble: &[String],
        statements: &[&Statement],
    ) -> Result<(), Failed> {
        let mut begin = format!("BEGIN; SELECT pg_advisory_xact_lock_shared({})", owner.lock_key());
        if statements.iter().any(|s| s.changes_shared()) {
            begin.push_str(&format!(
                "; SELECT reshard.keep_shared({}, {})",
                literal(&owner.token),
                owner.task
            ));
        }
        let texts: Vec<String> = statements.iter().map(|s| text(s, preamble)).collect();
        let sends = std::iter::once(begin.as_str()).chain(texts.iter().map(String::as_str));
        let mut answers = join_all(sends.map(|sql| self.connection.batch(sql))).await.into_iter();
        let begun = answers.next().unwrap_or(Ok(()));
        let failed = answers.enumerate().find_map(|(i, answer)| Some((i, answer.err()?)));
        let outcome = match (begun, failed) {
            (Err(error), _) => Err(Failed { at: None, error }),
            (Ok(()), Some((at, error))) => {
                let at = (error.kind != Kind::ConnectionLost).then_some(at);
                Err(Failed { at, error })
            }
            (Ok(()), None) => self.note(owner, statements).await.map_err(Failed::from),
        };
        if outcome.is_err() && !self.is_closed() {
            self.connection.batch("ROLLBACK").await?;
        }
        outcome
    }

    /// Whether changes flow into this database: then its tables can't be locked for
    /// as long as an index takes.
    ///
    /// # Errors
    /// The shard's.
    pub async fn is_live(&self) -> Result<bool> {
        self.connection
            .value(
                "SELECT EXISTS (SELECT 1 FROM pg_subscription AS s \
                   JOIN pg_database AS d ON d.oid = s.subdbid \
                  WHERE d.datname = current_database() AND s.subenabled)",
                &[],
            )
            .await
    }

    /// Builds an index while its table is written to. That can't be part of a
    /// transaction: what an interrupted build left is dropped first, and a build
    /// whose note was lost is found to be there already.
    ///
    /// # Errors
    /// The shard's.
    pub async fn build_concurrently(
        &self,
        owner: &Owner,
        preamble: &[String],
        statement: &Statement,
        concurrent: String,
    ) -> Result<(), Failed> {
        let key = owner.lock_key();
        self.connection.batch(&format!("SELECT pg_advisory_lock_shared({key})")).await?;
        let outcome = self.build(preamble, statement, concurrent).await;
        if !self.is_closed() {
            self.connection.batch(&format!("SELECT pg_advisory_unlock_shared({key})")).await?;
        }
        outcome.map_err(|error| Failed { at: Some(0), error })?;
        self.connection.batch("BEGIN").await?;
        self.note(owner, &[statement]).await.map_err(Failed::from)
    }

    async fn build(
        &self,
        preamble: &[String],
        statement: &Statement,
        concurrent: String,
    ) -> Result<()> {
        let left = self
            .connection
            .query(
                "SELECT format('%I.%I', n.nspname, c.relname) \
                   FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid \
                   JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                  WHERE n.nspname = $1 AND c.relname = $2 AND NOT i.indisvalid",
                &[&statement.schema_name, &statement.object_name],
            )
            .await?;
        for row in left {
            let name: String = row.try_get(0).map_err(|e| self.connection.error(&e))?;
            self.connection.batch(&format!("DROP INDEX {name}")).await?;
        }
        for setting in &statement.settings {
            self.connection.batch(setting).await?;
        }
        let built = self.connection.batch(&concurrent).await;
        for reset in resets(&statement.settings, preamble) {
            self.connection.batch(&reset).await?;
        }
        built
    }

    /// Writes the note and commits.
    async fn note(&self, owner: &Owner, statements: &[&Statement]) -> Result<()> {
        let sql = format!(
            "INSERT INTO reshard.applied_statement (token, digest, task_id, ordinal, objects) \
             SELECT $2, e.digest, $3, e.ordinal, o.objects FROM {} \
             ON CONFLICT (token, digest) DO UPDATE SET task_id = excluded.task_id, \
                ordinal = excluded.ordinal, objects = excluded.objects, \
                applied_at = excluded.applied_at",
            noted::with_objects(statements)
        );
        let sent = noted::sent(statements);
        self.connection.execute(&sql, &[&sent, &owner.token, &owner.task]).await?;
        self.connection.batch("COMMIT").await
    }
}

fn is_setting(sql: &str) -> bool {
    sql.get(..4).is_some_and(|word| word.eq_ignore_ascii_case("SET "))
}

/// A statement with its settings around it. What they overrode of the preamble
/// comes back with the preamble itself. Separators stand on lines of their own,
/// since a statement may end with a comment.
fn text(statement: &Statement, preamble: &[String]) -> String {
    // One that is there already must be noticed: it is not ours to drop.
    let sql = [
        ("CREATE EXTENSION IF NOT EXISTS ", "CREATE EXTENSION "),
        ("CREATE OR REPLACE PROCEDURAL LANGUAGE ", "CREATE PROCEDURAL LANGUAGE "),
    ]
    .iter()
    .find_map(|(lenient, strict)| Some(format!("{strict}{}", statement.sql.strip_prefix(lenient)?)))
    .unwrap_or_else(|| statement.sql.clone());
    if statement.settings.is_empty() {
        return sql;
    }
    let mut parts: Vec<String> = statement.settings.clone();
    parts.push(sql);
    parts.extend(resets(&statement.settings, preamble));
    parts.join("\n;\n")
}

/// What undoes a statement's settings.
fn resets(settings: &[String], preamble: &[String]) -> Vec<String> {
    let names: Vec<&str> = settings.iter().filter_map(|s| setting_name(s)).collect();
    let again = preamble.iter().filter(|s| setting_name(s).is_some_and(|n| names.contains(&n)));
    settings.iter().map(|setting| reset_of(setting)).chain(again.cloned()).collect()
}

/// The statement that builds an index while its table is written to; none for
/// another statement, or for the index of a partitioned table, which has no rows.
pub fn concurrent(statement: &Statement) -> Option<String> {
    let (prefix, rest) = ["CREATE INDEX ", "CREATE UNIQUE INDEX "]
        .iter()
        .find_map(|prefix| Some((*prefix, statement.sql.strip_prefix(prefix)?)))?;
    let (_, after) = identifier(rest)?;
    let partitioned = after.trim_start().starts_with("ON ONLY ");
    (!partitioned).then(|| format!("{prefix}CONCURRENTLY {rest}"))
}

/// `x` of `SET x = ...` and of `SELECT pg_catalog.set_config('x', ...)`.
fn setting_name(setting: &str) -> Option<&str> {
    if is_setting(setting) {
        return setting[4..].trim_start().split([' ', '=']).next();
    }
    setting.split('\'').nth(1)
}

fn reset_of(setting: &str) -> String {
    match setting_name(setting) {
        Some(name) if name.eq_ignore_ascii_case("session") => {
            "RESET SESSION AUTHORIZATION".to_owned()
        }
        Some(name) => format!("RESET {name}"),
        None => "SELECT 1".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(settings: &[&str]) -> Statement {
        let settings = settings.iter().map(|s| (*s).to_owned()).collect();
        Statement { settings, ..Statement::of("table", "CREATE TABLE t ()") }
    }

    #[test]
    fn only_indexes_of_tables_with_rows_are_built_concurrently() {
        let of = |sql: &str| concurrent(&Statement { sql: sql.into(), ..statement(&[]) });
        assert_eq!(
            of("CREATE UNIQUE INDEX \"a ON ONLY b\" ON s.t USING btree (c)").as_deref(),
            Some("CREATE UNIQUE INDEX CONCURRENTLY \"a ON ONLY b\" ON s.t USING btree (c)")
        );
        assert_eq!(of("CREATE INDEX i ON ONLY s.t USING btree (c)"), None);
        assert_eq!(of("ALTER TABLE s.t ADD PRIMARY KEY (c)"), None);
    }

    #[test]
    fn an_extension_that_is_there_already_is_noticed() {
        let sql = "CREATE EXTENSION IF NOT EXISTS lo WITH SCHEMA s".to_owned();
        let statement = Statement { sql, ..statement(&[]) };
        assert_eq!(text(&statement, &[]), "CREATE EXTENSION lo WITH SCHEMA s");
    }

    #[test]
    fn settings_are_undone_and_the_preamble_comes_back() {
        let preamble = [
            "SELECT pg_catalog.set_config('search_path', '', false)".to_owned(),
            "SET x = 1".into(),
        ];
        assert_eq!(text(&statement(&[]), &preamble), "CREATE TABLE t ()");
        assert_eq!(
            text(&statement(&["SET default_tablespace = s"]), &preamble),
            "SET default_tablespace = s\n;\nCREATE TABLE t ()\n;\nRESET default_tablespace"
        );
        assert!(text(&statement(&["SET x = 2"]), &preamble).ends_with("RESET x\n;\nSET x = 1"));
    }
}
