//! What the tables must hold: rows by table and id, changed by transactions.

use std::collections::BTreeMap;

use super::schema::body_of;

/// The application's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The key is the primary key.
    Accounts,
    /// The key is a part of the primary key.
    Orders,
    /// The key is outside the primary key.
    Events,
    /// No primary key; exact duplicates occur.
    Notes,
    /// The key is outside the primary key; large values in TOAST.
    Docs,
    /// Ids from a sequence.
    Tickets,
    /// Without the key: an omni table.
    Settings,
    /// One row for each transaction.
    Journal,
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 8] = [
        Table::Accounts,
        Table::Orders,
        Table::Events,
        Table::Notes,
        Table::Docs,
        Table::Tickets,
        Table::Settings,
        Table::Journal,
    ];

    /// Name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Table::Accounts => "accounts",
            Table::Orders => "orders",
            Table::Events => "events",
            Table::Notes => "notes",
            Table::Docs => "docs",
            Table::Tickets => "tickets",
            Table::Settings => "settings",
            Table::Journal => "journal",
        }
    }

    /// The column that tells its rows apart.
    pub fn id_column(self) -> &'static str {
        match self {
            Table::Accounts => "tenant_id",
            _ => "id",
        }
    }

    /// Whether it has the sharding key.
    pub fn is_sharded(self) -> bool {
        self != Table::Settings
    }

    /// A query for (id, tenant, stamp) of all rows that clients own. The stamp of
    /// a document whose body isn't what it was made with says so.
    pub fn owned_rows(self) -> String {
        let stamp = match self {
            Table::Docs => format!(
                "stamp || CASE WHEN body = {} THEN '' ELSE ' (body damaged)' END",
                body_of("id")
            ),
            _ => "stamp".to_owned(),
        };
        let tenant = match self.is_sharded() {
            true => "tenant_id",
            false => "NULL",
        };
        format!(
            "SELECT {}, {tenant}, {stamp} FROM {} WHERE owner <> 0",
            self.id_column(),
            self.name()
        )
    }
}

/// A row as it must be; `tenant` is the sharding key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The sharding key; none in an omni table.
    pub tenant: Option<i64>,
    /// Tells which transaction wrote it last.
    pub stamp: String,
    /// Exact copies of it; more than one only in `notes`.
    pub copies: u32,
}

/// One statement's effect.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(Table, i64, Row),
    Delete(Table, i64),
    /// An insert whose id the server hands out.
    PutReturning(Table, Row),
}

/// All rows that a client has after its acknowledged transactions.
#[derive(Debug, Clone, Default)]
pub struct State {
    rows: BTreeMap<(Table, i64), Row>,
}

impl State {
    pub(super) fn apply(&mut self, change: &Change, returned: Option<i64>) {
        match (change, returned) {
            (Change::Put(table, id, row), _) => {
                self.rows.insert((*table, *id), row.clone());
            }
            (Change::Delete(table, id), _) => {
                self.rows.remove(&(*table, *id));
            }
            (Change::PutReturning(table, row), Some(id)) => {
                self.rows.insert((*table, id), row.clone());
            }
            (Change::PutReturning(..), None) => {}
        }
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = (Table, i64, &Row)> {
        self.rows.iter().map(|((table, id), row)| (*table, *id, row))
    }

    /// The row of that id.
    pub fn get(&self, table: Table, id: i64) -> Option<&Row> {
        self.rows.get(&(table, id))
    }

    /// Number of rows in a table.
    pub fn count(&self, table: Table) -> usize {
        self.rows.range((table, i64::MIN)..=(table, i64::MAX)).count()
    }

    /// The first row of the table at or after `from`, wrapping around.
    pub(super) fn near(&self, table: Table, from: i64) -> Option<(i64, &Row)> {
        let after = self.rows.range((table, from)..=(table, i64::MAX)).next();
        after
            .or_else(|| self.rows.range((table, i64::MIN)..(table, from)).next())
            .map(|((_, id), row)| (*id, row))
    }
}
