//! What the other shards of the source are to show of a task: what has changed of it since
//! they were last told, and who has been told what.
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};
use crate::state::task::Task;

/// Rows of a page.
pub const PAGE: usize = 500;

/// A task, and another shard of its source that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub struct Feed {
    /// The task.
    pub task_id: i64,
    /// The shard.
    pub shard: u32,
}

/// What had been committed when somebody looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Horizon {
    /// When that was, as ISO 8601.
    pub at: String,
    /// The oldest transaction that ran: those before it, with their subtransactions, had ended.
    oldest: u32,
    /// The first transaction that had not begun.
    next: u32,
    /// Those between both that ran.
    running: Vec<u32>,
}

/// A view that every shard of the source shows. Its query takes the task, then what has
/// been sent already: all before `oldest`, for rows that sessions of users write, maybe in
/// subtransactions; for those of workers alone, of which there are many, all before `next`
/// but for the running ones; then the key of the last row of the page before, and how many
/// rows a page has. It returns keys and rows as text.
pub struct View {
    /// Its name.
    pub name: &'static str,
    /// Whether its rows come in pages.
    pub pages: bool,
    /// Whether it changes only if [`has_changed_tables`].
    pub of_tables: bool,
    changed: &'static str,
    count: Count,
}

/// When the rows of a view are counted, to see whether some have gone; and how.
enum Count {
    /// They never go.
    Never,
    /// Where some have changed: none goes by itself.
    AsRowsChange(&'static str),
    /// Each time.
    Always(&'static str),
}

/// All of them, in the order in which they are sent: a task's phase is shown last.
pub const VIEWS: &[View] = &[
    View {
        name: "schema_sync",
        changed: include_str!("mirror/schema_sync.sql"),
        pages: true,
        of_tables: false,
        count: Count::AsRowsChange(
            "SELECT count(*) FROM reshard.schema_statement AS s WHERE s.task_id = $1",
        ),
    },
    View {
        name: "table_copies",
        changed: include_str!("mirror/table_copies.sql"),
        pages: false,
        of_tables: true,
        count: Count::Always("SELECT count(*) FROM reshard.copy_table AS t WHERE t.task_id = $1"),
    },
    View {
        name: "node_copies",
        changed: include_str!("mirror/node_copies.sql"),
        pages: false,
        of_tables: true,
        count: Count::Always(
            "SELECT count(*) FROM (SELECT DISTINCT p.table_id, p.source_shard \
               FROM reshard.copy_part AS p WHERE p.task_id = $1) AS p",
        ),
    },
    View {
        name: "copy_totals",
        changed: include_str!("mirror/copy_totals.sql"),
        pages: false,
        of_tables: true,
        count: Count::Never,
    },
    View {
        name: "replication_slots",
        changed: include_str!("mirror/replication_slots.sql"),
        pages: false,
        of_tables: false,
        count: Count::Always("SELECT count(*) FROM reshard.flow AS f WHERE f.task_id = $1"),
    },
    View {
        name: "removals",
        changed: include_str!("mirror/removals.sql"),
        pages: false,
        of_tables: false,
        count: Count::Never,
    },
    View {
        name: "cutovers",
        changed: include_str!("mirror/cutovers.sql"),
        pages: false,
        of_tables: false,
        count: Count::Never,
    },
    View {
        name: "verifications",
        changed: include_str!("mirror/verifications.sql"),
        pages: false,
        of_tables: false,
        count: Count::Never,
    },
    View {
        name: "differences",
        changed: include_str!("mirror/differences.sql"),
        pages: true,
        of_tables: false,
        count: Count::Always(
            "SELECT count(*) FROM reshard.verification_difference AS d \
               JOIN reshard.task AS t ON t.id = d.task_id \
              WHERE t.parent_id = $1 AND t.type = 'verify'",
        ),
    },
    View {
        name: "events",
        changed: include_str!("mirror/events.sql"),
        pages: true,
        of_tables: false,
        count: Count::Never,
    },
    View {
        name: "tasks",
        changed: include_str!("mirror/tasks.sql"),
        pages: false,
        of_tables: false,
        count: Count::Never,
    },
];

/// Has the other shards of a task's source show it. Repeatable.
pub fn begin(task: &Task) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.mirror (task_id, shard) \
         SELECT $1, s.shard FROM reshard.declared_shard AS s \
          WHERE s.cluster = $2 AND s.shard <> $3 ON CONFLICT DO NOTHING",
        &[Arg::I64(task.id), Arg::Text(&task.source), Arg::I64(i64::from(task.options.node))],
    )
    .map(|_| ())
}

/// Who has not been told all. Rates of a copy that has ended in the middle fall for ten
/// seconds more.
pub fn unsettled() -> Result<Vec<Feed>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(m) FROM reshard.mirror AS m \
           JOIN reshard.task AS t ON t.id = m.task_id \
          WHERE t.status IN ('pending', 'running') OR m.sent_at IS NULL \
             OR m.sent_at < (SELECT pg_catalog.max(k.updated_at) FROM reshard.task AS k \
                              WHERE k.id = t.id OR k.parent_id = t.id) + interval '10 s' \
          ORDER BY m.task_id, m.shard",
        &[],
    )
}

/// Notes that a shard shows all that was committed at that time.
pub fn sent(feed: Feed, at: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.mirror SET sent_at = $3::timestamptz WHERE task_id = $1 AND shard = $2",
        &[Arg::I64(feed.task_id), Arg::I64(i64::from(feed.shard)), Arg::Text(at)],
    )
    .map(|_| ())
}

/// Leaves out a shard that has nothing to show it with, or is none any more.
pub fn forget(feed: Feed) -> Result<()> {
    db::execute(
        "DELETE FROM reshard.mirror WHERE task_id = $1 AND shard = $2",
        &[Arg::I64(feed.task_id), Arg::I64(i64::from(feed.shard))],
    )
    .map(|_| ())
}

/// What has been committed by now.
pub fn horizon() -> Result<Horizon> {
    let now: Option<(String, String)> = db::row(
        "SELECT pg_catalog.to_jsonb(ARRAY[ \
                    pg_catalog.to_jsonb(pg_catalog.clock_timestamp()) #>> '{}', \
                    pg_catalog.pg_current_snapshot()::text])",
        &[],
    )?;
    now.and_then(|(at, snapshot)| Horizon::parse(at, &snapshot))
        .ok_or_else(|| Error::internal("the current snapshot can't be read"))
}

impl Horizon {
    /// Reads a `pg_snapshot`: `xmin:xmax:xip,...`, numbers with their epoch.
    fn parse(at: String, snapshot: &str) -> Option<Self> {
        // Without the epoch, as rows have them.
        let xid = |text: &str| text.parse::<u64>().ok().map(|xid| xid as u32);
        let mut parts = snapshot.split(':');
        let (oldest, next) = (xid(parts.next()?)?, xid(parts.next()?)?);
        let running = parts.next()?.split(',').filter(|text| !text.is_empty());
        Some(Self { at, oldest, next, running: running.map(xid).collect::<Option<_>>()? })
    }
}

/// Numbers of transactions that rows are compared with; none where all rows are wanted.
fn bounds(since: Option<&Horizon>) -> (Option<String>, Option<String>, Vec<String>) {
    match since {
        Some(since) => (
            Some(since.oldest.to_string()),
            Some(since.next.to_string()),
            since.running.iter().map(ToString::to_string).collect(),
        ),
        None => (None, None, Vec::new()),
    }
}

/// Whether copies of tables have changed.
pub fn has_changed_tables(task: i64, since: &Horizon) -> Result<bool> {
    let (_, next, running) = bounds(Some(since));
    db::truth(
        "SELECT true FROM reshard.changed_tables($1, $2::xid, $3::text[]::xid[]) LIMIT 1",
        &[Arg::I64(task), Arg::OptText(next.as_deref()), Arg::Texts(running)],
    )
}

impl View {
    /// Rows about a task that have changed, each with its key, both as JSON; those of a
    /// page, after the key that the one before has ended with.
    pub fn changed(
        &self,
        task: i64,
        since: Option<&Horizon>,
        after: Option<&str>,
    ) -> Result<Vec<(String, String)>> {
        let (oldest, next, running) = bounds(since);
        db::rows(
            self.changed,
            &[
                Arg::I64(task),
                Arg::OptText(oldest.as_deref()),
                Arg::OptText(next.as_deref()),
                Arg::Texts(running),
                Arg::OptText(after),
                Arg::I64(PAGE as i64),
            ],
        )
    }

    /// How many rows it has about a task; none where none can have gone. `sent` is how many
    /// have changed.
    pub fn count(&self, task: i64, sent: usize) -> Result<Option<i64>> {
        match self.count {
            Count::Never => Ok(None),
            Count::AsRowsChange(_) if sent == 0 => Ok(None),
            Count::AsRowsChange(sql) | Count::Always(sql) => db::bigint(sql, &[Arg::I64(task)]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn snapshots_lose_their_epoch() {
        let read = |text| Horizon::parse("now".to_owned(), text);
        let epoch = 3_u64 << 32;
        let snapshot = format!("{}:{}:{},{}", epoch + 5, epoch + 9, epoch + 5, epoch + 7);
        let horizon = read(&snapshot).unwrap();
        assert_eq!((horizon.oldest, horizon.next, horizon.running), (5, 9, vec![5, 7]));
        assert_eq!(read("740:740:").unwrap().running, Vec::<u32>::new());
        assert!(read("740").is_none());
    }

    #[test]
    fn queries_are_ones_that_only_read() {
        // Others would have a transaction of their own written to WAL, each second.
        for view in VIEWS {
            assert!(view.changed.starts_with("SELECT"), "{}", view.name);
        }
    }
}
