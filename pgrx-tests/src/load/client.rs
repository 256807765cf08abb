//! One client: its loop, its connections, its memory of what was acknowledged.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::flag::{Active, Flag};
use super::generator::{Endpoints, LoadOptions};
use super::model::{Change, Row, State, Table};
use super::outcome::{ClientOutcome, Counts};
use super::plan::{Planner, Shape, Transaction};
use crate::error::{Error, Result};
use crate::session::Session;

/// SQLSTATE of the fence: read_only_sql_transaction.
const FENCED: &str = "25006";
/// A client that is refused or cut off tries again after this.
const RETRY: Duration = Duration::from_millis(20);
/// Longest time of nothing but refusals.
const REROUTE: Duration = Duration::from_secs(30);

/// How an attempt at a transaction ended.
enum Attempt {
    /// COMMIT was acknowledged; ids that the server handed out, by statement.
    Committed(Vec<Option<i64>>),
    /// Rolled back on purpose.
    RolledBack,
    /// The fence refused it.
    Fenced,
    /// The connection broke before COMMIT was sent.
    Broken,
    /// The connection broke after it.
    InDoubt,
    /// A statement failed.
    Failed(Error),
}

/// A shard of either cluster.
type Target = (Active, usize);

pub(super) struct Client {
    number: u32,
    follows: bool,
    pace: Duration,
    reads: bool,
    endpoints: Endpoints,
    flag: watch::Receiver<Flag>,
    stop: watch::Receiver<bool>,
    progress: watch::Sender<u64>,
    planner: Planner,
    /// Since when the fence has refused every attempt.
    refused_since: Option<Instant>,
    /// By cluster and shard number.
    sessions: HashMap<Target, Session>,
    outcome: ClientOutcome,
}

impl Client {
    pub(super) fn new(
        number: u32,
        follows: bool,
        options: &LoadOptions,
        endpoints: Endpoints,
        flag: watch::Receiver<Flag>,
        stop: watch::Receiver<bool>,
        progress: watch::Sender<u64>,
    ) -> Self {
        Client {
            number,
            follows,
            pace: options.pace,
            reads: options.reads,
            endpoints,
            flag,
            stop,
            progress,
            planner: Planner::new(number, options.seed, options.omni),
            refused_since: None,
            sessions: HashMap::new(),
            outcome: ClientOutcome {
                client: number,
                follows,
                state: State::default(),
                acknowledged_at: Vec::new(),
                failed: Vec::new(),
                counts: Counts::default(),
            },
        }
    }

    /// Runs transactions until told to stop.
    pub(super) async fn run(mut self) -> ClientOutcome {
        while !self.stopping() {
            let Some(active) = self.route().await else {
                break;
            };
            if self.reads && self.planner.random().chance(50) {
                self.read(active).await;
            }
            self.one_transaction(active).await;
            let most = 2 * self.pace.as_micros() as u64;
            let pause = Duration::from_micros(self.planner.random().below(most + 1));
            tokio::time::sleep(pause).await;
        }
        self.outcome
    }

    fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits while traffic is paused; none when told to stop meanwhile.
    async fn route(&mut self) -> Option<Active> {
        if !self.follows {
            return Some(Active::Source);
        }
        tokio::select! {
            flag = self.flag.wait_for(|flag| !flag.paused) => Some(flag.ok()?.active),
            _ = self.stop.wait_for(|stop| *stop) => None,
        }
    }

    async fn one_transaction(&mut self, active: Active) {
        // All of a transaction lies on one shard, where there are several.
        let apart = active == Active::Shards || self.endpoints.of(active).len() > 1;
        let endpoints = &self.endpoints;
        let shard_of = |tenant| endpoints.shard_of(active, tenant);
        let shard_of: Option<&dyn Fn(i64) -> usize> = match apart {
            true => Some(&shard_of),
            false => None,
        };
        let transaction = self.planner.next(&self.outcome.state, shard_of);
        if transaction.statements.is_empty() {
            return;
        }
        let target = self.target(active, transaction.tenant);
        let epoch = self.flag.borrow().epoch;
        match self.attempt(target, &transaction).await {
            Attempt::Committed(returned) => self.acknowledge(active, &transaction, &returned),
            Attempt::RolledBack => {}
            Attempt::Fenced if self.follows => {
                self.outcome.counts.redirected += 1;
                self.await_new_route(active, epoch).await;
            }
            Attempt::Fenced => {
                self.outcome.counts.refused += 1;
                tokio::time::sleep(RETRY).await;
            }
            Attempt::Broken => {
                self.outcome.counts.broken += 1;
                self.sessions.clear();
                tokio::time::sleep(RETRY).await;
            }
            Attempt::InDoubt => {
                self.outcome.counts.in_doubt += 1;
                self.sessions.clear();
                self.look_up(active, &transaction).await;
            }
            Attempt::Failed(error) => {
                let text = format!("client {}: {error}: {transaction:?}", self.number);
                self.outcome.failed.push(text);
                self.sessions.clear();
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Reads rows of one tenant where they are.
    async fn read(&mut self, active: Active) {
        let tenant = self.planner.tenant();
        let target = self.target(active, tenant);
        let sql = format!("SELECT count(*), max(stamp) FROM orders WHERE tenant_id = {tenant}");
        let read = match self.session(target).await {
            Ok(session) => session.rows(&sql).await.map(drop),
            Err(error) => Err(error),
        };
        match read {
            Ok(()) => {}
            Err(error) if error.is_disconnect() => self.sessions.clear(),
            Err(error) => self.outcome.failed.push(format!("client {}: {error}", self.number)),
        }
    }

    fn acknowledge(&mut self, on: Active, transaction: &Transaction, returned: &[Option<i64>]) {
        self.refused_since = None;
        for (planned, id) in transaction.statements.iter().zip(returned) {
            self.outcome.state.apply(&planned.change, *id);
        }
        let journal = Row { tenant: Some(transaction.tenant), stamp: String::new(), copies: 1 };
        let change = Change::Put(Table::Journal, transaction.journal_id, journal);
        self.outcome.state.apply(&change, None);
        self.outcome.acknowledged_at.push(Instant::now());
        self.outcome.counts.acknowledged += 1;
        if on == Active::Shards {
            self.outcome.counts.on_shards += 1;
        }
        self.progress.send_modify(|count| *count += 1);
    }

    /// After a refusal: the flag comes to name another cluster or a later epoch, or
    /// the cutover was aborted and the same cluster takes writes again.
    async fn await_new_route(&mut self, refused_on: Active, epoch: i64) {
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        let moved = self
            .flag
            .wait_for(|flag| !flag.paused && (flag.active != refused_on || flag.epoch > epoch));
        drop(tokio::time::timeout(10 * RETRY, moved).await);
        if since.elapsed() > REROUTE {
            self.refused_since = None;
            self.outcome.failed.push(format!(
                "client {}: refused with {FENCED} for {REROUTE:?}, at last on the {refused_on:?} \
                 in epoch {epoch}",
                self.number
            ));
        }
    }

    async fn attempt(&mut self, target: Target, transaction: &Transaction) -> Attempt {
        let pause = Duration::from_millis(self.planner.random().below(20));
        let session = match self.session(target).await {
            Ok(session) => session,
            Err(error) if error.is_disconnect() => return Attempt::Broken,
            Err(error) => return Attempt::Failed(error),
        };
        let journal = journal_statement(transaction);
        if transaction.shape == Shape::Autocommit {
            let Some(only) = transaction.statements.first() else {
                return Attempt::RolledBack;
            };
            let sql = format!("WITH journaled AS ({journal}) {}", only.sql);
            return match run(session, &sql, &only.change).await {
                Ok(returned) => Attempt::Committed(vec![returned]),
                Err(error) if error.is_disconnect() => Attempt::InDoubt,
                Err(error) => self.refused_or_failed(target, error).await,
            };
        }
        match statements(session, transaction, &journal, pause).await {
            Ok(returned) => {
                if transaction.shape == Shape::RolledBack {
                    return match session.execute("ROLLBACK").await {
                        Err(error) if !error.is_disconnect() => Attempt::Failed(error),
                        _ => Attempt::RolledBack,
                    };
                }
                match session.execute("COMMIT").await {
                    Ok(()) => Attempt::Committed(returned),
                    Err(error) if error.is_disconnect() => Attempt::InDoubt,
                    Err(error) => self.refused_or_failed(target, error).await,
                }
            }
            Err(error) if error.is_disconnect() => Attempt::Broken,
            Err(error) => self.refused_or_failed(target, error).await,
        }
    }

    async fn refused_or_failed(&mut self, target: Target, error: Error) -> Attempt {
        if error.sqlstate() != Some(FENCED) {
            return Attempt::Failed(error);
        }
        let rolled_back = match self.sessions.get(&target) {
            Some(session) => session.execute("ROLLBACK").await.is_ok(),
            None => true,
        };
        if !rolled_back {
            self.sessions.remove(&target);
        }
        Attempt::Fenced
    }

    /// Where a tenant's rows are.
    fn target(&self, active: Active, tenant: i64) -> Target {
        (active, self.endpoints.shard_of(active, tenant))
    }

    async fn session(&mut self, target: Target) -> Result<&Session> {
        let endpoint = self
            .endpoints
            .of(target.0)
            .get(target.1)
            .cloned()
            .ok_or_else(|| Error::Unexpected(format!("there is no shard {target:?}")))?;
        let name = format!("client {}", self.number);
        match self.sessions.entry(target) {
            std::collections::hash_map::Entry::Occupied(open) if !open.get().is_closed() => {
                Ok(open.into_mut())
            }
            std::collections::hash_map::Entry::Occupied(mut broken) => {
                broken.insert(endpoint.connect(&name).await?);
                Ok(broken.into_mut())
            }
            std::collections::hash_map::Entry::Vacant(vacant) => {
                Ok(vacant.insert(endpoint.connect(&name).await?))
            }
        }
    }

    /// Asks `journal` whether a transaction without an answer was committed. All
    /// processes of the server that took it are gone before a new one answers.
    async fn look_up(&mut self, ran_on: Active, transaction: &Transaction) {
        loop {
            tokio::time::sleep(RETRY).await;
            let active = match self.route().await {
                Some(active) => active,
                None => ran_on,
            };
            let target = self.target(active, transaction.tenant);
            let found = match self.session(target).await {
                Ok(session) => fate(session, transaction).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(Some(returned)) => {
                    self.outcome.counts.in_doubt_committed += 1;
                    self.acknowledge(ran_on, transaction, &returned);
                    return;
                }
                Ok(None) => return,
                Err(error) if error.is_disconnect() => self.sessions.clear(),
                Err(error) => {
                    self.outcome.failed.push(format!("client {}: {error}", self.number));
                    return;
                }
            }
        }
    }
}

fn journal_statement(transaction: &Transaction) -> String {
    let owner = transaction.journal_id / 1_000_000_000;
    format!(
        "INSERT INTO journal (tenant_id, owner, id, stamp) VALUES ({}, {owner}, {}, '')",
        transaction.tenant, transaction.journal_id
    )
}

async fn statements(
    session: &Session,
    transaction: &Transaction,
    journal: &str,
    pause: Duration,
) -> Result<Vec<Option<i64>>> {
    if transaction.shape == Shape::RepeatableRead {
        session
            .execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM settings LIMIT 1")
            .await?;
        tokio::time::sleep(pause).await;
    } else {
        session.execute("BEGIN").await?;
    }
    session.execute(journal).await?;
    let mut returned = Vec::new();
    for planned in &transaction.statements {
        returned.push(run(session, &planned.sql, &planned.change).await?);
    }
    Ok(returned)
}

async fn run(session: &Session, sql: &str, change: &Change) -> Result<Option<i64>> {
    match change {
        Change::PutReturning(..) => session.one(sql).await.map(Some),
        Change::Put(_, _, row) => touched(session, sql, u64::from(row.copies)).await,
        Change::Delete(..) => touched(session, sql, 0).await,
    }
}

/// A statement that finds other rows than it must has met a lost or a doubled one.
async fn touched(session: &Session, sql: &str, expected: u64) -> Result<Option<i64>> {
    let rows = session.affected(sql).await?;
    match rows == expected || (expected == 0 && rows > 0) {
        true => Ok(None),
        false => Err(Error::Unexpected(format!(
            "touched {rows} rows where {expected} were expected: {sql}"
        ))),
    }
}

/// Whether a transaction was committed, with the ids that it got from sequences.
async fn fate(session: &Session, transaction: &Transaction) -> Result<Option<Vec<Option<i64>>>> {
    let found: i64 = session
        .one(&format!(
            "SELECT count(*) FROM journal WHERE tenant_id = {} AND id = {}",
            transaction.tenant, transaction.journal_id
        ))
        .await?;
    if found == 0 {
        return Ok(None);
    }
    let mut returned = Vec::new();
    for planned in &transaction.statements {
        returned.push(match &planned.change {
            Change::PutReturning(table, row) => {
                let sql = format!("SELECT id FROM {} WHERE stamp = '{}'", table.name(), row.stamp);
                Some(session.one(&sql).await?)
            }
            _ => None,
        });
    }
    Ok(Some(returned))
}
