//! Sequences at the switch: on M shards, shard d hands out every M-th value from
//! the next one on, so that no two shards, and no shard and the old cluster, hand
//! out the same. Sequences owned by omni tables are the same on every shard.
use futures::future::try_join_all;

use crate::cluster::{ShardNo, Side};
use crate::error::{Error, Result};
use crate::remote::quote::literal;
use crate::remote::{Connection, Links};
use crate::state::table::Table;

/// A sequence as it is on the source.
#[derive(Debug, Clone)]
struct Sequence {
    /// Quoted, schema-qualified name.
    name: String,
    increment: i64,
    minimum: i64,
    maximum: i64,
    cycle: bool,
    /// Owned by a table that every shard has whole.
    omni: bool,
}

/// Sequences of a migration and the text that reads them all in one round trip.
pub struct Sequences {
    all: Vec<Sequence>,
    read: String,
}

/// What a sequence stands at.
#[derive(Debug, Clone, Copy)]
struct Position {
    last: i64,
    called: bool,
}

impl Sequence {
    /// The next value from a position, if every `step`-th is handed out.
    fn after(&self, position: Position, step: i64) -> i64 {
        match position.called {
            true => position.last.saturating_add(step),
            false => position.last,
        }
    }

    /// `setval` to hand out `next` as the next value, within the limits.
    fn set(&self, next: i64) -> String {
        let name = literal(&self.name);
        let beyond = next > self.maximum || next < self.minimum;
        if !beyond {
            return format!("SELECT pg_catalog.setval({name}, {next}, false)");
        }
        let (first, last) = match self.increment > 0 {
            true => (self.minimum, self.maximum),
            false => (self.maximum, self.minimum),
        };
        match self.cycle {
            true => format!("SELECT pg_catalog.setval({name}, {first}, false)"),
            // The next call fails with the server's own error, as it should.
            false => format!("SELECT pg_catalog.setval({name}, {last}, true)"),
        }
    }
}

impl Sequences {
    /// None at all: for a recovery, which never sets them.
    pub fn none() -> Self {
        Self { all: Vec::new(), read: String::new() }
    }

    /// Sequences of the source that all servers of `target` have too.
    ///
    /// # Errors
    /// The server's.
    pub async fn load(links: &Links, tables: &[Table]) -> Result<Self> {
        let session = links.session(Side::Source, ShardNo(0)).await?;
        let omni: Vec<String> =
            tables.iter().filter(|t| t.key_column.is_none()).map(Table::qualified).collect();
        let sharded: Vec<String> =
            tables.iter().filter(|t| t.key_column.is_some()).map(Table::qualified).collect();
        let rows = session
            .query(
                "SELECT format('%I.%I', n.nspname, c.relname), s.seqincrement, s.seqmin, s.seqmax, \
                        s.seqcycle, \
                        EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass \
                            AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass \
                            AND d.deptype IN ('a', 'i') AND (d.refobjid IN ( \
                                SELECT to_regclass(t) FROM unnest($1::text[]) AS t \
                                UNION SELECT pg_partition_root(to_regclass(t)) FROM unnest($1::text[]) AS t)) \
                            AND d.refobjid NOT IN ( \
                                SELECT to_regclass(t) FROM unnest($2::text[]) AS t \
                                UNION SELECT coalesce(pg_partition_root(to_regclass(t)), to_regclass(t)) \
                                        FROM unnest($2::text[]) AS t)) \
                   FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid \
                   JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                  WHERE n.nspname <> 'reshard' AND c.relpersistence <> 't' \
                    AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass \
                        AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1",
                &[&omni, &sharded],
            )
            .await?;
        let get = |e: tokio_postgres::Error| session.error(&e);
        let mut all = Vec::with_capacity(rows.len());
        for row in &rows {
            all.push(Sequence {
                name: row.try_get(0).map_err(get)?,
                increment: row.try_get(1).map_err(get)?,
                minimum: row.try_get(2).map_err(get)?,
                maximum: row.try_get(3).map_err(get)?,
                cycle: row.try_get(4).map_err(get)?,
                omni: row.try_get(5).map_err(get)?,
            });
        }
        let all = present_on_destination(links, all).await?;
        let read = all
            .iter()
            .enumerate()
            .map(|(nr, s)| format!("SELECT {nr}::int, last_value, is_called FROM {}", s.name))
            .collect::<Vec<_>>()
            .join(" UNION ALL ");
        Ok(Self { all, read })
    }

    /// Gives the destination's sequences their increments, before the fence.
    ///
    /// # Errors
    /// The servers'.
    pub async fn prepare_destination(&self, links: &Links) -> Result<()> {
        let shards = i64::from(links.cluster(Side::Destination).size());
        let mut statements = Vec::new();
        for sequence in self.all.iter().filter(|s| !s.omni) {
            let increment = sequence.increment.checked_mul(shards).ok_or_else(|| {
                Error::state(format!("increment of sequence {} is too large", sequence.name))
            })?;
            statements.push(format!("ALTER SEQUENCE {} INCREMENT BY {increment}", sequence.name));
        }
        // One transaction of many statements would hold many locks.
        for chunk in statements.chunks(500) {
            links.batch(Side::Destination, &chunk.join("; ")).await?;
        }
        Ok(())
    }

    /// Sets the shards' sequences to go on where the source's stopped.
    ///
    /// # Errors
    /// The servers'.
    pub async fn forward(&self, links: &Links) -> Result<()> {
        if self.all.is_empty() {
            return Ok(());
        }
        let nodes = links.sessions(Side::Source).await?;
        let next = self.next(&nodes, 1).await?;
        let shards = links.sessions(Side::Destination).await?;
        try_join_all(shards.iter().map(|(shard, session)| {
            let statements = self.all.iter().zip(&next).map(|(sequence, next)| {
                let offset = match sequence.omni {
                    true => 0,
                    false => sequence.increment.saturating_mul(i64::from(shard.0)),
                };
                sequence.set(next.saturating_add(offset))
            });
            let sql = statements.collect::<Vec<_>>().join("; ");
            async move { session.batch(&sql).await }
        }))
        .await?;
        Ok(())
    }

    /// Sets the source's sequences beyond all that the shards handed out.
    ///
    /// # Errors
    /// The servers'.
    pub async fn reverse(&self, links: &Links) -> Result<()> {
        if self.all.is_empty() {
            return Ok(());
        }
        let shards = links.sessions(Side::Destination).await?;
        let next = self.next(&shards, 1).await?;
        let sql: Vec<String> = self.all.iter().zip(&next).map(|(s, next)| s.set(*next)).collect();
        links.batch(Side::Source, &sql.join("; ")).await
    }

    /// For each sequence the first value that none of these servers has handed out.
    async fn next(
        &self,
        servers: &[(ShardNo, std::rc::Rc<Connection>)],
        steps: i64,
    ) -> Result<Vec<i64>> {
        let read = try_join_all(servers.iter().map(|(_, s)| self.positions(s))).await?;
        self.all
            .iter()
            .enumerate()
            .map(|(nr, sequence)| {
                let step = sequence.increment.saturating_mul(steps);
                let candidates =
                    read.iter().filter_map(|p| p.get(nr)).map(|p| sequence.after(*p, step));
                match sequence.increment > 0 {
                    true => candidates.max(),
                    false => candidates.min(),
                }
                .ok_or_else(|| {
                    Error::internal(format!("sequence {} was read nowhere", sequence.name))
                })
            })
            .collect()
    }

    async fn positions(&self, session: &Connection) -> Result<Vec<Position>> {
        let mut out = vec![Position { last: 0, called: false }; self.all.len()];
        for row in session.query(&self.read, &[]).await? {
            let get = |e: tokio_postgres::Error| session.error(&e);
            let nr: i32 = row.try_get(0).map_err(get)?;
            if let Some(place) = out.get_mut(nr as usize) {
                *place = Position {
                    last: row.try_get(1).map_err(get)?,
                    called: row.try_get(2).map_err(get)?,
                };
            }
        }
        Ok(out)
    }
}

async fn present_on_destination(links: &Links, all: Vec<Sequence>) -> Result<Vec<Sequence>> {
    let names: Vec<String> = all.iter().map(|s| s.name.clone()).collect();
    let sessions = links.sessions(Side::Destination).await?;
    let missing = try_join_all(sessions.iter().map(|(_, session)| {
        let names = &names;
        async move {
            session
                .value::<Vec<String>>(
                    "SELECT coalesce(array_agg(t), '{}') FROM unnest($1::text[]) AS t \
                      WHERE to_regclass(t) IS NULL",
                    &[names],
                )
                .await
        }
    }))
    .await?;
    Ok(all.into_iter().filter(|s| !missing.iter().any(|m| m.contains(&s.name))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(increment: i64, cycle: bool) -> Sequence {
        Sequence {
            name: "\"public\".\"s\"".into(),
            increment,
            minimum: 1,
            maximum: 100,
            cycle,
            omni: false,
        }
    }

    #[test]
    fn an_unused_sequence_starts_with_its_first_value() {
        let s = sequence(1, false);
        assert_eq!(s.after(Position { last: 1, called: false }, 1), 1);
        assert_eq!(s.after(Position { last: 7, called: true }, 1), 8);
        assert_eq!(sequence(-2, false).after(Position { last: 7, called: true }, -2), 5);
    }

    #[test]
    fn an_exhausted_sequence_fails_at_the_next_call() {
        assert!(sequence(1, false).set(101).ends_with("100, true)"));
        assert!(sequence(-1, false).set(0).ends_with("1, true)"));
    }

    #[test]
    fn an_exhausted_cycle_starts_again() {
        assert!(sequence(1, true).set(101).ends_with("1, false)"));
        assert!(sequence(-1, true).set(0).ends_with("100, false)"));
    }
}
