//! Sequences at the switch. By default shard d of M hands out every M-th value, so
//! that no two shards, and no shard and the old cluster, hand out the same.
//! Sequences owned by omni tables are the same on every shard.
//!
//! The fence does not hold back a bare `nextval()`: a margin is left out for those
//! that are called on the old cluster between here and the switch.
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future::try_join_all;

use crate::cluster::{ShardNo, Side};
use crate::cutover::lanes::{self, Limits, Position};
use crate::cutover::{failpoint, Step};
use crate::error::{Error, Result};
use crate::gucs;
use crate::pg::xact::transaction;
use crate::remote::quote::literal;
use crate::remote::{Connection, Links};
use crate::state::options::SequencePolicy;
use crate::state::staying::{self, StayingSequence};
use crate::state::table::Table;

/// A sequence as it is on the source.
#[derive(Debug, Clone)]
struct Sequence {
    /// Quoted, schema-qualified name.
    name: String,
    limits: Limits,
    /// Owned by a table that every shard of the source has whole.
    omni_on_source: bool,
    /// The same on the destination.
    omni_on_destination: bool,
}

/// Names of sequences, quoted, and the statements that set them.
pub type Settings = Vec<(String, String)>;

/// Sequences of a migration and the text that reads them all in one round trip.
pub struct Sequences {
    all: Vec<Sequence>,
    policy: SequencePolicy,
    read: String,
}

impl Sequences {
    /// None at all: for a recovery, which never sets them.
    pub fn none() -> Self {
        Self { all: Vec::new(), policy: SequencePolicy::Untouched, read: String::new() }
    }

    /// Sequences of the source that all shards have too; `kept` says what those are that a
    /// switch has changed.
    ///
    /// # Errors
    /// The server's.
    pub async fn load(
        links: &Links,
        tables: &[Table],
        policy: SequencePolicy,
        kept: &[StayingSequence],
    ) -> Result<Self> {
        if policy == SequencePolicy::Untouched {
            return Ok(Self::none());
        }
        let session = links.session(Side::Source, links.node()).await?;
        let mut all = present_on_destination(links, list(&session, tables).await?).await?;
        for sequence in &mut all {
            if let Some(before) = kept.iter().find(|k| k.name == sequence.name) {
                sequence.limits = Limits { cycle: sequence.limits.cycle, ..limits_of(before) };
            }
        }
        let read = all
            .iter()
            .enumerate()
            .map(|(nr, s)| format!("SELECT {nr}, last_value, is_called FROM {}", s.name))
            .collect::<Vec<_>>()
            .join(" UNION ALL ");
        Ok(Self { all, policy, read })
    }

    /// Before a rollback to several source shards: gives their sequences increments by
    /// which no two of them hand out the same, where they have none.
    ///
    /// # Errors
    /// The servers'; 55000 where an increment can't be raised.
    pub async fn spread_source(
        links: &Links,
        tables: &[Table],
        policy: SequencePolicy,
    ) -> Result<()> {
        let sequences = Self::load(links, tables, policy, &[]).await?;
        let nodes = links.sessions(Side::Source).await?;
        let increments = try_join_all(nodes.iter().map(|(_, s)| sequences.increments(s))).await?;
        let read = try_join_all(nodes.iter().map(|(_, s)| sequences.positions(s))).await?;
        let mut servers = links.sessions(Side::Destination).await?;
        servers.extend(nodes.iter().cloned());
        let next = sequences.next(&servers).await?;
        let mut statements = vec![Vec::new(); nodes.len()];
        for (nr, (sequence, next)) in sequences.all.iter().zip(&next).enumerate() {
            let increments: Vec<i64> =
                increments.iter().filter_map(|i| i.get(nr)).copied().collect();
            let lasts: Vec<i64> = read.iter().filter_map(|p| p.get(nr)).map(|p| p.last).collect();
            let is_divided = sequences.is_divided(sequence, Side::Source);
            if !is_divided || lanes::all_apart(&sequence.limits, &increments, &lasts) {
                continue;
            }
            let limits = lanes::raised(&sequence.limits, &increments).ok_or_else(|| {
                Error::state(format!("sequence {} can't be divided", sequence.name))
                    .detail("Its increment would be larger than a bigint.")
            })?;
            let raised = Sequence { limits, ..sequence.clone() };
            // In lanes at once: a switch that is called off here has it done, and once.
            for (own, begin) in statements.iter_mut().zip(limits.apart(*next, &lasts)) {
                own.push(format!(
                    "ALTER SEQUENCE {} INCREMENT BY {}; {}",
                    sequence.name,
                    limits.increment,
                    set(&raised, begin, 0)
                ));
            }
        }
        try_join_all(nodes.iter().zip(&statements).map(|((_, session), own)| async move {
            for chunk in own.chunks(500) {
                session.batch(&chunk.join("; ")).await?;
            }
            Ok::<(), Error>(())
        }))
        .await?;
        Ok(())
    }

    fn is_divided(&self, sequence: &Sequence, side: Side) -> bool {
        let is_omni = match side {
            Side::Source => sequence.omni_on_source,
            Side::Destination => sequence.omni_on_destination,
        };
        !is_omni && self.policy != SequencePolicy::Untouched
    }

    /// Gives the shards' sequences their increments or ranges, before the fence.
    ///
    /// # Errors
    /// The servers'; 55000 where a sequence has too few values left to be divided.
    pub async fn prepare_destination(&self, links: &Links) -> Result<()> {
        if self.all.is_empty() {
            return Ok(());
        }
        let shards = links.cluster(Side::Destination).size();
        let next = match self.policy {
            SequencePolicy::Blocks => self.next(&links.sessions(Side::Source).await?).await?,
            _ => Vec::new(),
        };
        let sessions = links.sessions(Side::Destination).await?;
        try_join_all(sessions.iter().map(|(shard, session)| {
            let next = &next;
            async move {
                let mut statements = Vec::new();
                for (nr, sequence) in self.all.iter().enumerate() {
                    if !self.is_divided(sequence, Side::Destination) {
                        continue;
                    }
                    let divided = sequence.divided(shards, *shard, next.get(nr).copied())?;
                    statements.push(format!("ALTER SEQUENCE {} {divided}", sequence.name));
                }
                // One transaction of many statements would hold many locks.
                for chunk in statements.chunks(500) {
                    session.batch(&chunk.join("; ")).await?;
                }
                Ok::<(), Error>(())
            }
        }))
        .await?;
        Ok(())
    }

    /// What the sequences of shards that stay are, and what part of the values each is to
    /// have: to be kept before a switch. The switch itself changes them, since clients use
    /// them until then.
    ///
    /// # Errors
    /// As [`Sequences::prepare_destination`].
    pub async fn staying(&self, links: &Links) -> Result<Vec<StayingSequence>> {
        let destination = links.cluster(Side::Destination);
        let names: Vec<&str> = self.all.iter().map(|s| s.name.as_str()).collect();
        let mut out = Vec::new();
        for (shard, node) in &destination.staying.shards {
            let session = links.session(Side::Source, *node).await?;
            let rows = session
                .query(
                    "SELECT s.seqincrement, s.seqmin, s.seqmax, s.seqstart \
                       FROM unnest($1::text[]) WITH ORDINALITY AS t (name, nr) \
                       JOIN pg_sequence AS s ON s.seqrelid = to_regclass(t.name) ORDER BY t.nr",
                    &[&names],
                )
                .await?;
            let get = |e: tokio_postgres::Error| session.error(&e);
            for (sequence, row) in self.all.iter().zip(&rows) {
                let divided = match self.is_divided(sequence, Side::Destination) {
                    true => Some(sequence.divided(destination.size(), *shard, None)?),
                    false => None,
                };
                out.push(StayingSequence {
                    source_shard: node.0,
                    name: sequence.name.clone(),
                    increment: row.try_get(0).map_err(get)?,
                    minimum: row.try_get(1).map_err(get)?,
                    maximum: row.try_get(2).map_err(get)?,
                    start: row.try_get(3).map_err(get)?,
                    divided,
                    opening: String::new(),
                });
            }
        }
        Ok(out)
    }

    /// For each shard the sequences, by their quoted names, and the statements that set
    /// them beyond all that any server has handed out.
    ///
    /// # Errors
    /// The servers'.
    pub async fn settings(&self, links: &Links) -> Result<Vec<(ShardNo, Settings)>> {
        if self.all.is_empty() {
            return Ok(Vec::new());
        }
        let mut servers = links.sessions(Side::Source).await?;
        servers.extend(links.sessions(Side::Destination).await?);
        let next = self.next(&servers).await?;
        let shards = links.numbers(Side::Destination).into_iter();
        Ok(shards.map(|shard| (shard, self.settings_on(shard, &next))).collect())
    }

    /// Sets the shards' sequences so.
    ///
    /// # Errors
    /// The servers'.
    pub async fn set(&self, links: &Links, settings: &[(ShardNo, Settings)]) -> Result<()> {
        self.prepare_destination(links).await?;
        for (shard, own) in settings {
            let session = links.session(Side::Destination, *shard).await?;
            apply(&session, own).await?;
        }
        Ok(())
    }

    fn settings_on(&self, shard: ShardNo, next: &[i128]) -> Settings {
        let mut out = Vec::with_capacity(self.all.len());
        for (sequence, next) in self.all.iter().zip(next) {
            let lane = match (self.is_divided(sequence, Side::Destination), self.policy) {
                // Its range was set apart before the fence.
                (true, SequencePolicy::Blocks) => continue,
                (true, _) => shard.0,
                (false, _) => 0,
            };
            out.push((sequence.name.clone(), set(sequence, *next, lane)));
        }
        out
    }

    /// Sets the shards' sequences to go on where the source's stopped. Those of shards that
    /// stay are in use until the switch, and are left to the step that opens these: returns
    /// what it has to do.
    ///
    /// # Errors
    /// The servers'; 55000 where the source handed out more than was left for it.
    pub async fn forward(
        &self,
        links: &Links,
        kept: &[StayingSequence],
    ) -> Result<Vec<StayingSequence>> {
        if self.all.is_empty() {
            return Ok(Vec::new());
        }
        let next = self.next(&links.sessions(Side::Source).await?).await?;
        let shards = links.sessions(Side::Destination).await?;
        try_join_all(shards.iter().enumerate().map(|(nr, (shard, session))| {
            let next = &next;
            async move {
                failpoint::reach_partly(Step::Sequences, nr).await?;
                apply(session, &self.settings_on(*shard, next)).await
            }
        }))
        .await?;
        if self.policy == SequencePolicy::Blocks {
            self.still_before_blocks(&shards, &next).await?;
        }
        let staying = &links.cluster(Side::Destination).staying;
        let opening = |kept: &StayingSequence| {
            let shard = staying.of_node(ShardNo(kept.source_shard))?;
            let (sequence, next) = self.all.iter().zip(&next).find(|(s, _)| s.name == kept.name)?;
            let lane = if kept.divided.is_some() { shard.0 } else { 0 };
            let divide = kept.divided.iter().map(|d| format!("ALTER SEQUENCE {} {d};", kept.name));
            let all: String = divide.chain([set_ahead(sequence, *next, lane)]).collect();
            Some(StayingSequence { opening: all, ..kept.clone() })
        };
        Ok(kept.iter().filter_map(opening).collect())
    }

    /// A range begins behind one as large that is left to the source.
    async fn still_before_blocks(
        &self,
        shards: &[(ShardNo, Rc<Connection>)],
        next: &[i128],
    ) -> Result<()> {
        let Some((_, first)) = shards.first() else { return Ok(()) };
        let starts = self.positions(first).await?;
        for ((sequence, next), start) in self.all.iter().zip(next).zip(starts) {
            let begins = sequence.limits.after(start);
            let must_be_before =
                self.is_divided(sequence, Side::Destination) && !sequence.limits.cycle;
            if must_be_before && !sequence.limits.is_before(*next, begins) {
                return Err(Error::state(format!(
                    "sequence {} ran into the values of the shards",
                    sequence.name
                ))
                .detail("It handed out more values than were left for it since the cutover began.")
                .hint("Call reshard_cutover() again."));
            }
        }
        Ok(())
    }

    /// Sets the source's sequences beyond all that the shards handed out, those of
    /// several source shards apart from one another.
    ///
    /// # Errors
    /// The servers'.
    pub async fn reverse(
        &self,
        links: &Links,
        kept: &[StayingSequence],
    ) -> Result<Vec<StayingSequence>> {
        if self.all.is_empty() {
            return Ok(Vec::new());
        }
        let mut servers = links.sessions(Side::Destination).await?;
        let source = links.sessions(Side::Source).await?;
        servers.extend(source.iter().cloned());
        let next = self.next(&servers).await?;
        let read = try_join_all(source.iter().map(|(_, s)| self.positions(s))).await?;
        let mut statements = vec![Vec::with_capacity(self.all.len()); source.len()];
        let mut opening = Vec::new();
        for (nr, (sequence, next)) in self.all.iter().zip(&next).enumerate() {
            let lasts: Vec<i64> = read.iter().filter_map(|p| p.get(nr)).map(|p| p.last).collect();
            let begins = match self.is_divided(sequence, Side::Source) {
                true => sequence.limits.apart(*next, &lasts),
                false => vec![*next; lasts.len()],
            };
            for (((shard, _), own), begin) in source.iter().zip(&mut statements).zip(begins) {
                let here =
                    |k: &&StayingSequence| k.source_shard == shard.0 && k.name == sequence.name;
                match kept.iter().find(here) {
                    // Its shard takes writes until the switch.
                    Some(kept) => opening.push(StayingSequence {
                        opening: give_back(kept) + &set_ahead(sequence, begin, 0),
                        ..kept.clone()
                    }),
                    None => own.push(set(sequence, begin, 0)),
                }
            }
        }
        try_join_all(
            source.iter().zip(&statements).map(|((_, session), own)| set_all(session, own)),
        )
        .await?;
        Ok(opening)
    }

    /// For each sequence the first value that none of these servers has handed
    /// out, or is likely to until the switch.
    async fn next(&self, servers: &[(ShardNo, Rc<Connection>)]) -> Result<Vec<i128>> {
        let read = try_join_all(servers.iter().map(|(_, s)| self.positions(s))).await?;
        let margin = gucs::SEQUENCE_MARGIN.get().unsigned_abs();
        self.all
            .iter()
            .enumerate()
            .map(|(nr, sequence)| {
                let positions = read.iter().filter_map(|p| p.get(nr)).copied();
                sequence.limits.next(positions, margin).ok_or_else(|| {
                    Error::internal(format!("sequence {} was read nowhere", sequence.name))
                })
            })
            .collect()
    }

    async fn increments(&self, session: &Connection) -> Result<Vec<i64>> {
        let names: Vec<&str> = self.all.iter().map(|s| s.name.as_str()).collect();
        session
            .value(
                "SELECT coalesce(array_agg(s.seqincrement ORDER BY t.nr), '{}') \
                   FROM unnest($1::text[]) WITH ORDINALITY AS t (name, nr) \
                   JOIN pg_sequence AS s ON s.seqrelid = to_regclass(t.name)",
                &[&names],
            )
            .await
    }

    async fn positions(&self, session: &Connection) -> Result<Vec<Position>> {
        let mut out = vec![Position { last: 0, called: false }; self.all.len()];
        for row in session.text_rows(&self.read).await? {
            let [Some(nr), Some(last), Some(called)] = row.as_slice() else {
                return Err(Error::internal("a sequence has no value"));
            };
            let place = nr.parse().ok().and_then(|nr: usize| out.get_mut(nr));
            match (place, last.parse()) {
                (Some(place), Ok(last)) => *place = Position { last, called: called == "t" },
                _ => return Err(Error::internal(format!("a sequence stands at \"{last}\""))),
            }
        }
        Ok(out)
    }
}

impl Sequence {
    /// What follows `ALTER SEQUENCE` for the part of one of so many shards: a range that
    /// begins after `next`, or else every so-many-th value.
    fn divided(&self, shards: u32, shard: ShardNo, next: Option<i128>) -> Result<String> {
        let divided = match next {
            Some(next) => lanes::block(&self.limits, next, shards, shard.0),
            None => lanes::lane(&self.limits, shards, shard.0),
        };
        divided.ok_or_else(|| {
            Error::state(format!("sequence {} can't be divided among {shards} shards", self.name))
                .detail("It has too few values left.")
                .hint("Raise its MAXVALUE, or start with options => '{\"sequences\": \"untouched\"}'.")
        })
    }
}

/// By shard of a side, what a switch has to do about the sequences of shards that stay
/// before these take writes again, in PL/pgSQL.
///
/// # Errors
/// SPI's.
pub fn of_opening(links: &Links, side: Side, task: i64) -> Result<BTreeMap<ShardNo, String>> {
    let shards = &links.cluster(Side::Destination).staying.shards;
    let mut out = BTreeMap::new();
    if shards.is_empty() {
        return Ok(out);
    }
    let kept = transaction(|| staying::load(task))?;
    for (shard, node) in shards {
        let own = kept.iter().filter(|k| k.source_shard == node.0);
        let number = if side == Side::Source { node } else { shard };
        out.insert(*number, own.map(|k| k.opening.as_str()).collect());
    }
    Ok(out)
}

/// What makes a sequence what it was, in PL/pgSQL.
fn give_back(kept: &StayingSequence) -> String {
    let StayingSequence { name, increment, minimum, maximum, start, .. } = kept;
    match kept.divided {
        None => String::new(),
        Some(_) => format!(
            "ALTER SEQUENCE {name} INCREMENT BY {increment} MINVALUE {minimum} MAXVALUE {maximum} \
             START {start};"
        ),
    }
}

/// `setval` as [`set`] does it, in PL/pgSQL; not where the sequence is there already.
fn set_ahead(sequence: &Sequence, next: i128, lane: u32) -> String {
    let (value, called) = sequence.limits.setting(next, lane);
    let before = if sequence.limits.increment > 0 { "<" } else { ">" };
    format!(
        "PERFORM pg_catalog.setval({}, {value}, {called}) FROM {} AS s WHERE s.last_value {before} {value};",
        literal(&sequence.name),
        sequence.name
    )
}

/// What it hands out before a switch.
fn limits_of(kept: &StayingSequence) -> Limits {
    let StayingSequence { increment, minimum, maximum, .. } = *kept;
    Limits { increment, minimum, maximum, cycle: false }
}

async fn apply(session: &Connection, settings: &Settings) -> Result<()> {
    let statements: Vec<&str> = settings.iter().map(|(_, sql)| sql.as_str()).collect();
    set_all(session, &statements).await
}

/// Does not wait for the disk: the handoff does, which comes after it (forward), or
/// the commit point (back), on the same server.
async fn set_all<S: Borrow<str>>(session: &Connection, statements: &[S]) -> Result<()> {
    match statements.is_empty() {
        true => Ok(()),
        false => {
            let sql = statements.join("; ");
            session.batch(&format!("SET LOCAL synchronous_commit = off; {sql}")).await
        }
    }
}

/// `setval` to hand out `next` as the next value of a lane, within the limits.
fn set(sequence: &Sequence, next: i128, lane: u32) -> String {
    let (value, called) = sequence.limits.setting(next, lane);
    format!("SELECT pg_catalog.setval({}, {value}, {called})", literal(&sequence.name))
}

/// All sequences of the source that the user made.
async fn list(session: &Connection, tables: &[Table]) -> Result<Vec<Sequence>> {
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    let sharded = |side| tables.iter().map(|t| t.is_sharded(side)).collect::<Vec<bool>>();
    let rows = session
        .query(
            "WITH moved AS ( \
                 SELECT r.oid, bool_or(t.on_source) AS on_source, \
                        bool_or(t.on_destination) AS on_destination \
                   FROM unnest($1::text[], $2::boolean[], $3::boolean[]) \
                        AS t (name, on_source, on_destination) \
                  CROSS JOIN LATERAL (SELECT to_regclass(t.name)::oid AS oid \
                                      UNION SELECT pg_partition_root(to_regclass(t.name))) AS r \
                  WHERE r.oid IS NOT NULL GROUP BY r.oid), \
             owned AS ( \
                 SELECT d.objid AS oid, bool_or(m.on_source) AS on_source, \
                        bool_or(m.on_destination) AS on_destination \
                   FROM pg_depend AS d JOIN moved AS m ON m.oid = d.refobjid \
                  WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass \
                    AND d.deptype IN ('a', 'i') GROUP BY d.objid) \
             SELECT format('%I.%I', n.nspname, c.relname), s.seqincrement, s.seqmin, s.seqmax, \
                    s.seqcycle, o.on_source IS false, o.on_destination IS false \
               FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid \
               LEFT JOIN owned AS o ON o.oid = c.oid \
               JOIN pg_namespace AS n ON n.oid = c.relnamespace \
              WHERE n.nspname <> 'reshard' AND c.relpersistence <> 't' \
                AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass \
                    AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1",
            &[&names, &sharded(Side::Source), &sharded(Side::Destination)],
        )
        .await?;
    let get = |e: tokio_postgres::Error| session.error(&e);
    rows.iter()
        .map(|row| {
            Ok(Sequence {
                name: row.try_get(0).map_err(get)?,
                limits: Limits {
                    increment: row.try_get(1).map_err(get)?,
                    minimum: row.try_get(2).map_err(get)?,
                    maximum: row.try_get(3).map_err(get)?,
                    cycle: row.try_get(4).map_err(get)?,
                },
                omni_on_source: row.try_get(5).map_err(get)?,
                omni_on_destination: row.try_get(6).map_err(get)?,
            })
        })
        .collect()
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
