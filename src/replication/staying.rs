//! Guards of shards that are in both clusters: which rows their clients may write.
//!
//! A row that belongs to another shard of the destination stays where it was until the
//! migration is complete: changes of it come back there, so that there is a way back. And
//! one that comes to such a shard is there from the copy on. So a shard has rows of its own
//! in one cluster, in the other, or in both. While a cluster is active nobody may write to a row
//! that is not the shard's own there, nor make one: who does has missed a switch. The
//! triggers ask the latch which cluster is active. Apply workers fire none of them.
use crate::cluster::{ShardNo, Side};
use crate::error::Result;
use crate::remote::quote::{ident, literal};
use crate::remote::{Connection, Links};
use crate::replication::filter::{self, Filter, Filters};
use crate::replication::locked;
use crate::state::table::Table;

/// Names of the triggers for the placement of one cluster. The first keeps writers off rows
/// of other shards and fires before others of its kind. The others keep them from making some:
/// the second fires last before the row is there, so that the error is not that of a key which
/// is there already; the third sees it as it has become.
const ON_DESTINATION: [&str; 3] = ["!reshard_moved", "zzz_reshard_elsewhere", "reshard_elsewhere"];
const ON_SOURCE: [&str; 3] = ["!reshard_arrived", "zzz_reshard_stray", "reshard_stray"];

/// Names of all of them.
pub(super) fn trigger_names() -> impl Iterator<Item = &'static str> {
    ON_DESTINATION.into_iter().chain(ON_SOURCE)
}

/// What makes a trigger on a table: its name, and the rest of the statement.
struct Trigger<'t> {
    table: &'t Table,
    name: &'static str,
    definition: String,
}

/// Puts the guards for one cluster's placement on the tables of the shards that stay, wherever
/// they are missing. Those of the destination before a switch; those of the source before
/// rows come, where some do. Repeatable.
///
/// # Errors
/// The servers'; 55P03 where a table can't be locked.
pub async fn guard(links: &Links, side: Side, tables: &[Table]) -> Result<()> {
    for (shard, node) in &links.cluster(Side::Destination).staying.shards {
        let session = links.session(Side::Source, *node).await?;
        let own = own(side, *shard, *node);
        let filters = filters(&session, links, side, tables).await?;
        let triggers: Vec<Trigger<'_>> = placed(tables, &filters)
            .flat_map(|(table, filter)| triggers(links, side, own, table, filter))
            .collect();
        put(&session, &triggers).await?;
    }
    Ok(())
}

/// The number in one cluster of a shard that is in both.
fn own(side: Side, shard: ShardNo, node: ShardNo) -> ShardNo {
    match side {
        Side::Source => node,
        Side::Destination => shard,
    }
}

/// The placement of a cluster, for a shard of the source.
async fn filters(
    session: &Connection,
    links: &Links,
    side: Side,
    tables: &[Table],
) -> Result<Filters> {
    filter::filters(session, Side::Source, tables, side, links.cluster(side)).await
}

fn placed<'t: 'f, 'f>(
    tables: &'t [Table],
    filters: &'f Filters,
) -> impl Iterator<Item = (&'t Table, &'f Filter)> {
    tables.iter().filter_map(|table| Some((table, filters.get(&table.table_id)?)))
}

fn triggers<'t>(
    links: &Links,
    side: Side,
    own: ShardNo,
    table: &'t Table,
    filter: &Filter,
) -> [Trigger<'t>; 3] {
    let [others, new, made_so] = if side == Side::Source { ON_SOURCE } else { ON_DESTINATION };
    let columns = table.sharding_key(side).map(|key| key.columns);
    let latch = if side == Side::Source { "1" } else { "3" };
    let arguments = [
        links.cluster(side).name.as_str(),
        &own.to_string(),
        &serde_json::json!(columns).to_string(),
        latch,
    ]
    .map(literal)
    .join(", ");
    let made = |when: &str, row: &str| {
        format!(
            "{when} ON {} FOR EACH ROW WHEN (NOT {}) EXECUTE FUNCTION \
             reshard.guard_staying({arguments})",
            table.qualified(),
            filter.condition_over(own, &format!("{row}.")),
        )
    };
    [
        Trigger { table, name: others, definition: made("BEFORE UPDATE OR DELETE", "OLD") },
        Trigger { table, name: new, definition: made("BEFORE INSERT", "NEW") },
        Trigger { table, name: made_so, definition: made("AFTER INSERT OR UPDATE", "NEW") },
    ]
}

/// Makes the triggers that are missing or disabled.
async fn put(session: &Connection, triggers: &[Trigger<'_>]) -> Result<()> {
    let tables: Vec<String> = triggers.iter().map(|t| t.table.qualified()).collect();
    let names: Vec<&str> = triggers.iter().map(|t| t.name).collect();
    let missing: Vec<i64> = session
        .value(
            "SELECT coalesce(array_agg(t.nr ORDER BY t.nr), '{}') \
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (name, trigger, nr) \
              WHERE NOT EXISTS (SELECT FROM pg_trigger AS g \
                     WHERE g.tgrelid = to_regclass(t.name) AND g.tgname = t.trigger \
                       AND g.tgenabled = 'O')",
            &[&tables, &names],
        )
        .await?;
    for trigger in missing.iter().filter_map(|nr| triggers.get(*nr as usize - 1)) {
        let (table, name) = (trigger.table.qualified(), ident(trigger.name));
        let statements = [
            format!("CREATE OR REPLACE TRIGGER {name} {}", trigger.definition),
            format!("ALTER TABLE {table} ENABLE TRIGGER {name}"),
            format!("ALTER TRIGGER {name} ON {table} DEPENDS ON EXTENSION reshard"),
        ];
        locked::batch(session, &table, &statements.join("; ")).await?;
    }
    Ok(())
}

/// The tables of a shard that stays with what a row `t` meets that is not its own in a cluster:
/// in the destination it has moved away, in the source it has come.
///
/// # Errors
/// The server's.
pub async fn not_own<'t>(
    session: &Connection,
    links: &Links,
    side: Side,
    (shard, node): (ShardNo, ShardNo),
    tables: &'t [Table],
) -> Result<Vec<(&'t Table, String)>> {
    let own = own(side, shard, node);
    let filters = filters(session, links, side, tables).await?;
    let conditions = placed(tables, &filters)
        .map(|(table, filter)| (table, format!("NOT {}", filter.condition_over(own, "t."))));
    Ok(conditions.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_others_are_guarded_before_other_triggers_fire() {
        for first in [ON_DESTINATION[0], ON_SOURCE[0]] {
            assert!(["#", "0", "A", "_"].iter().all(|other| first < *other));
        }
    }
}
