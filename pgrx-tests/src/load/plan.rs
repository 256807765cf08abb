//! Makes up transactions: statements and the effect each must have.

use super::model::{Change, Row, State, Table};
use super::schema::body_of;
use crate::random::Random;

/// Tenants of each client.
const TENANTS: i64 = 16;
/// Rows that a client keeps in a table, roughly.
const ROWS: usize = 150;

/// A statement and its effect.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) sql: String,
    pub(super) change: Change,
}

/// How a transaction is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One statement, no BEGIN.
    Autocommit,
    /// BEGIN, statements, COMMIT.
    Multi,
    /// The same in REPEATABLE READ, its snapshot taken a while before its first write.
    RepeatableRead,
    /// BEGIN, statements, ROLLBACK.
    RolledBack,
}

/// A transaction to be run; `tenant` is the key of its row in `journal`.
#[derive(Debug, Clone)]
pub(super) struct Transaction {
    pub(super) shape: Shape,
    pub(super) tenant: i64,
    pub(super) journal_id: i64,
    pub(super) statements: Vec<Planned>,
}

/// The sharding keys that a client writes rows of.
pub fn tenants(client: i64) -> impl Iterator<Item = i64> {
    let base = client * 1_000_000;
    (0..TENANTS).map(move |number| base + number)
}

/// Makes up transactions of one client.
#[derive(Debug)]
pub(super) struct Planner {
    client: i64,
    random: Random,
    next_id: i64,
    sequence: i64,
    /// Writes to omni tables, only while the source is active.
    omni: bool,
}

impl Planner {
    pub(super) fn new(client: u32, seed: u64, omni: bool) -> Self {
        Planner {
            client: i64::from(client),
            random: Random::new(seed.wrapping_mul(1_000_003) + u64::from(client)),
            next_id: i64::from(client) * 1_000_000_000,
            sequence: 0,
            omni,
        }
    }

    pub(super) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// The next transaction. With `shard_of`, all of it lies on one shard.
    pub(super) fn next(
        &mut self,
        state: &State,
        shard_of: Option<&dyn Fn(i64) -> usize>,
    ) -> Transaction {
        self.sequence += 1;
        let tenant = self.tenant();
        let scope: Vec<i64> = match shard_of {
            None => self.tenants().collect(),
            Some(shard_of) => {
                let shard = shard_of(tenant);
                self.tenants().filter(|other| shard_of(*other) == shard).collect()
            }
        };
        let shape = match self.random.below(20) {
            0..=9 => Shape::Autocommit,
            10..=14 => Shape::Multi,
            15..=18 => Shape::RepeatableRead,
            _ => Shape::RolledBack,
        };
        let wanted = match shape {
            Shape::Autocommit => 1,
            _ => 1 + self.random.below(5),
        };
        let mut touched = Vec::new();
        let mut statements = Vec::new();
        for number in 0..wanted {
            let stamp = format!("c{}-t{}-s{number}", self.client, self.sequence);
            let omni = self.omni && shard_of.is_none();
            statements.extend(self.statement(state, &scope, &mut touched, stamp, omni));
        }
        Transaction {
            shape,
            tenant,
            journal_id: self.client * 1_000_000_000 + self.sequence,
            statements,
        }
    }

    fn tenants(&self) -> impl Iterator<Item = i64> {
        tenants(self.client)
    }

    /// One of the client's tenants.
    pub(super) fn tenant(&mut self) -> i64 {
        self.client * 1_000_000 + self.random.below(TENANTS as u64) as i64
    }

    fn statement(
        &mut self,
        state: &State,
        scope: &[i64],
        touched: &mut Vec<(Table, i64)>,
        stamp: String,
        omni: bool,
    ) -> Option<Planned> {
        const WEIGHTED: [Table; 12] = [
            Table::Orders,
            Table::Orders,
            Table::Orders,
            Table::Events,
            Table::Events,
            Table::Notes,
            Table::Notes,
            Table::Docs,
            Table::Tickets,
            Table::Tickets,
            Table::Accounts,
            Table::Settings,
        ];
        let mut table = *self.random.pick(&WEIGHTED)?;
        if table == Table::Settings && !omni {
            table = Table::Orders;
        }
        let tenant = *self.random.pick(scope)?;
        if table == Table::Accounts {
            return self.account(state, tenant, touched, stamp);
        }
        let from = self.client * 1_000_000_000 + self.random.below(20_000) as i64;
        let existing = state
            .near(
                table,
                if table == Table::Tickets { self.random.below(100_000) as i64 } else { from },
            )
            .filter(|(id, row)| {
                row.tenant.is_none_or(|tenant| scope.contains(&tenant))
                    && !touched.contains(&(table, *id))
            });
        let full = state.count(table) >= ROWS;
        match (existing, self.random.below(10)) {
            (Some((id, row)), 0..=3) => {
                touched.push((table, id));
                Some(update(table, id, row, row.tenant, stamp))
            }
            (Some((id, row)), 4) if row.tenant.is_some() => {
                touched.push((table, id));
                Some(update(table, id, row, Some(tenant), stamp))
            }
            (Some((id, _)), choice) if full || choice == 5 => {
                touched.push((table, id));
                Some(delete(table, id))
            }
            _ if full => None,
            _ => {
                self.next_id += 1;
                touched.push((table, self.next_id));
                Some(self.insert(table, self.next_id, tenant, stamp))
            }
        }
    }

    fn account(
        &mut self,
        state: &State,
        tenant: i64,
        touched: &mut Vec<(Table, i64)>,
        stamp: String,
    ) -> Option<Planned> {
        if touched.contains(&(Table::Accounts, tenant)) {
            return None;
        }
        touched.push((Table::Accounts, tenant));
        Some(match state.get(Table::Accounts, tenant) {
            None => self.insert(Table::Accounts, tenant, tenant, stamp),
            Some(_) if self.random.chance(20) => delete(Table::Accounts, tenant),
            Some(row) => update(Table::Accounts, tenant, row, row.tenant, stamp),
        })
    }

    fn insert(&mut self, table: Table, id: i64, tenant: i64, stamp: String) -> Planned {
        let owner = self.client;
        let mut copies = 1;
        let sql = match table {
            Table::Accounts => {
                format!("INSERT INTO accounts (tenant_id, owner, stamp) VALUES ({tenant}, {owner}, '{stamp}')")
            }
            Table::Docs => format!(
                "INSERT INTO docs (id, tenant_id, owner, stamp, body)
                 VALUES ({id}, {tenant}, {owner}, '{stamp}', {})",
                body_of(&id.to_string())
            ),
            Table::Tickets => format!(
                "INSERT INTO tickets (tenant_id, owner, stamp)
                 VALUES ({tenant}, {owner}, '{stamp}') RETURNING id"
            ),
            Table::Settings => {
                format!("INSERT INTO settings (id, owner, stamp) VALUES ({id}, {owner}, '{stamp}')")
            }
            Table::Notes => {
                copies = 1 + self.random.below(3) as u32;
                let values = format!("({tenant}, {id}, {owner}, '{stamp}')");
                let all = vec![values; copies as usize].join(", ");
                format!("INSERT INTO notes (tenant_id, id, owner, stamp) VALUES {all}")
            }
            _ => format!(
                "INSERT INTO {} (tenant_id, id, owner, stamp) VALUES ({tenant}, {id}, {owner}, '{stamp}')",
                table.name()
            ),
        };
        let row = Row { tenant: table.is_sharded().then_some(tenant), stamp, copies };
        let change = match table {
            Table::Tickets => Change::PutReturning(table, row),
            _ => Change::Put(table, id, row),
        };
        Planned { sql, change }
    }
}

fn update(table: Table, id: i64, row: &Row, tenant: Option<i64>, stamp: String) -> Planned {
    let mut set = format!("stamp = '{stamp}'");
    if tenant != row.tenant {
        set.push_str(&format!(", tenant_id = {}", tenant.unwrap_or_default()));
    }
    let row = Row { tenant, stamp, copies: row.copies };
    let which = which(table, id);
    Planned {
        sql: format!("UPDATE {} SET {set} WHERE {which}", table.name()),
        change: Change::Put(table, id, row),
    }
}

fn delete(table: Table, id: i64) -> Planned {
    let which = which(table, id);
    Planned {
        sql: format!("DELETE FROM {} WHERE {which}", table.name()),
        change: Change::Delete(table, id),
    }
}

fn which(table: Table, id: i64) -> String {
    format!("{} = {id}", table.id_column())
}
