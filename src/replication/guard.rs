//! The placement's guard: triggers that refuse rows which no flow would carry.
//!
//! A row filter drops without a word a row that no shard takes, and a row on the wrong
//! shard is found by nobody. So while a table moves whose keys are placed by list or range,
//! the source refuses rows that no shard of the destination takes (or none of the source,
//! to which they have to come back), and each shard refuses rows that are not its own.
//! Fired after the row is as it will be, at the table itself, so that it makes no
//! difference whether a partition is written straight or from above; for every session.
//!
//! Placement by hash takes every row, and who writes to a shard must know the hash anyway:
//! there is no guard, and no cost.
use crate::cluster::{KeySql, Placement, ShardNo, Side};
use crate::error::Result;
use crate::remote::quote::{ident, literal};
use crate::remote::{partition_key, Connection, Links};
use crate::replication::locked;
use crate::state::table::Table;

/// Name of the trigger for placement on the destination.
const GUARD: &str = "reshard_placement";
/// Name of the trigger for placement on the source.
const GUARD_BACK: &str = "reshard_placement_back";
/// Names of all guards.
pub(super) const GUARDS: [&str; 2] = [GUARD, GUARD_BACK];

/// A trigger that a table needs.
struct Guard<'t> {
    table: &'t Table,
    /// The cluster whose placement it is about.
    of: Side,
    column: &'t str,
    /// True for rows that are refused.
    condition: String,
}

/// Puts guards on the tables of one shard, wherever they are missing, disabled or not what
/// they have to be.
///
/// # Errors
/// The server's; 55P03 where a table can't be locked.
pub async fn put(
    session: &Connection,
    links: &Links,
    side: Side,
    shard: ShardNo,
    tables: &[Table],
) -> Result<()> {
    let guards = needed(session, links, side, shard, tables).await?;
    let names: Vec<String> = guards.iter().map(|g| g.table.qualified()).collect();
    let triggers: Vec<&str> = guards.iter().map(Guard::trigger).collect();
    let conditions: Vec<&str> = guards.iter().map(|g| g.condition.as_str()).collect();
    let rows = session
        .query(
            "SELECT t.nr, md5(t.condition) \
               FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY \
                    AS t (name, trigger, condition, nr) \
              WHERE NOT EXISTS (SELECT FROM pg_trigger AS g \
                     WHERE g.tgrelid = to_regclass(t.name) AND g.tgname = t.trigger \
                       AND g.tgenabled = 'A' \
                       AND position(convert_to(md5(t.condition), 'UTF8') IN g.tgargs) > 0)",
            &[&names, &triggers, &conditions],
        )
        .await?;
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let number: i64 = row.try_get(0).map_err(get)?;
        let digest: String = row.try_get(1).map_err(get)?;
        if let Some(guard) = guards.get(number as usize - 1) {
            let statements = guard.statements(links, side, shard, &digest);
            locked::batch(session, &guard.table.qualified(), &statements.join("; ")).await?;
        }
    }
    Ok(())
}

impl Guard<'_> {
    fn trigger(&self) -> &'static str {
        match self.of {
            Side::Destination => GUARD,
            Side::Source => GUARD_BACK,
        }
    }

    /// What makes the trigger. The digest tells it from one for another placement.
    fn statements(&self, links: &Links, side: Side, shard: ShardNo, digest: &str) -> Vec<String> {
        let (name, trigger) = (self.table.qualified(), self.trigger());
        let own = if is_own(self.of, side) { shard.to_string() } else { String::new() };
        // Rows that the user's publication leaves out don't move: they need no shard.
        let filter = match side {
            Side::Source => self.table.row_filter.as_deref().unwrap_or(""),
            Side::Destination => "",
        };
        let cluster = &links.cluster(self.of).name;
        let arguments = [cluster, self.column, &own, filter, digest].map(literal).join(", ");
        let mut statements = vec![
            format!(
                "CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT OR UPDATE ON {name} \
                 FOR EACH ROW WHEN ({}) EXECUTE FUNCTION reshard.refuse_row({arguments})",
                self.condition,
            ),
            format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}"),
        ];
        if side == Side::Source {
            statements
                .push(format!("ALTER TRIGGER {trigger} ON {name} DEPENDS ON EXTENSION reshard"));
        }
        statements
    }
}

/// Whether a guard is about rows that belong to other shards of its own cluster. On the source
/// rows may lie wherever they do: only the destination's shards begin empty.
fn is_own(of: Side, side: Side) -> bool {
    of == side && side == Side::Destination
}

/// The guards that the tables of a shard need.
async fn needed<'t>(
    session: &Connection,
    links: &Links,
    side: Side,
    shard: ShardNo,
    tables: &'t [Table],
) -> Result<Vec<Guard<'t>>> {
    let mut mapped = Vec::new();
    for table in tables {
        for of in [Side::Destination, Side::Source] {
            let Some(key) = table.sharding_key(of) else { continue };
            if let (Placement::Mapped(map), Some(column)) =
                (links.cluster(of).placement(Some(key)), key.single())
            {
                mapped.push((table, of, key.columns, column, map));
            }
        }
    }
    let wanted: Vec<(String, &[String])> =
        mapped.iter().map(|(table, _, columns, ..)| (table.qualified(), *columns)).collect();
    let keys = partition_key::load(session, &wanted).await?;
    let mut guards = Vec::new();
    for ((table, of, _, column, map), key) in mapped.into_iter().zip(keys) {
        let expression = format!("NEW.{}", ident(column));
        let key = KeySql { expression: &expression, type_name: key.type_name() };
        let condition = match is_own(of, side) {
            true => Some(format!("NOT {}", map.takes(shard, key))),
            false => map.takes_not(key),
        };
        guards.extend(condition.map(|condition| Guard { table, of, column, condition }));
    }
    Ok(guards)
}
