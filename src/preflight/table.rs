//! Checks of the tables and what is built on them.
use std::fmt::Display;

use crate::cluster::rule::shown;
use crate::cluster::{Method, Side};
use crate::error::Kind;
use crate::preflight::facts::{Facts, ForeignKey, ServerFacts, Table};
use crate::preflight::finding::{Finding, Severity};
use crate::remote::quote::ident;
use crate::replication::settle;
use crate::state::options::{Constraint, ForeignKeys, ReplicaIdentity};

/// Foreign keys hold on each shard by itself.
pub fn foreign_keys(facts: &Facts<'_>) -> Vec<Finding> {
    let Some(content) = &facts.content else { return Vec::new() };
    let mut found: Vec<Finding> =
        content.foreign_keys.iter().filter_map(|k| judge(facts, k)).collect();
    let treated = match facts.options.foreign_keys {
        // Whether the shards get the constraint is up to the user.
        _ if !facts.verb.makes_schema() => "",
        ForeignKeys::Error => return found,
        ForeignKeys::NotValid => " The shards get it NOT VALID (option foreign_keys).",
        ForeignKeys::Skip => " The shards don't get it (option foreign_keys).",
    };
    for finding in &mut found {
        finding.severity = Severity::Warning;
        finding.detail.push_str(treated);
    }
    found
}

/// The foreign keys that [`foreign_keys`] is about.
pub fn unfit_foreign_keys(facts: &Facts<'_>) -> Vec<Constraint> {
    let all = facts.content.iter().flat_map(|c| &c.foreign_keys);
    all.filter(|key| judge(facts, key).is_some())
        .map(|key| Constraint {
            schema_name: key.from_schema.clone(),
            table_name: key.from_table.clone(),
            name: key.name.clone(),
        })
        .collect()
}

fn judge(facts: &Facts<'_>, key: &ForeignKey) -> Option<Finding> {
    let of = |oid| facts.tables().find(|t| t.oid == oid);
    let from = of(key.from)?;
    let object = format!("constraint \"{}\" on table {}", key.name, key.from_name);
    let error = |why: String, hint: &str| {
        Finding::error(
            "foreign_keys",
            Kind::WrongState,
            format!(
                "foreign key \"{}\" of table {} can't hold on the shards",
                key.name, key.from_name
            ),
        )
        .object(object.clone())
        .detail(why)
        .hint(hint)
    };
    let Some(to) = of(key.to) else {
        return Some(error(
            format!(
                "It refers to table {}, which is not published: its rows don't move.",
                key.to_name
            ),
            &format!(
                "Add that table to the publication: ALTER PUBLICATION {} ADD TABLE {};",
                ident(facts.publication),
                key.to_name
            ),
        ));
    };
    if !facts.is_spread() {
        return None;
    }
    let drop = format!(
        "Use option foreign_keys (\"not_valid\" or \"skip\"), change the sharding keys, or drop the \
         constraint: ALTER TABLE {} DROP CONSTRAINT \"{}\";",
        key.from_name,
        key.name.replace('"', "\"\"")
    );
    match (sharded(from), sharded(to)) {
        (_, None) => None,
        (None, Some(_)) => Some(error(
            format!(
                "Every shard gets all rows of {}, but only some of the rows of {} to which they \
                 refer.",
                key.from_name, key.to_name
            ),
            &drop,
        )),
        (Some(from_key), Some(to_key)) if !from.is_placed_like(to) => Some(error(
            format!(
                "Keys {} and {} of its tables are placed in different ways.",
                shown(from_key),
                shown(to_key)
            ),
            &drop,
        )),
        (Some(from_key), Some(to_key)) if key.holds_keys(from_key, to_key) => None,
        (Some(from_key), Some(to_key)) if !from.has_types_of(to) => Some(error(
            format!(
                "Its tables are sharded by {} and {}, which are of different types.",
                shown(from_key),
                shown(to_key)
            ),
            &drop,
        )),
        (Some(from_key), Some(to_key)) => match key.crosses {
            Some(false) => None,
            Some(true) => Some(error(
                format!(
                    "There are rows of {} whose sharding key {} differs from {} of the row in {} \
                     to which they refer.",
                    key.from_name,
                    shown(from_key),
                    shown(to_key),
                    key.to_name
                ),
                &drop,
            )),
            None => Some(
                Finding::warning(
                    "foreign_keys",
                    format!(
                        "foreign key \"{}\" of table {} may not hold on the shards",
                        key.name, key.from_name
                    ),
                )
                .object(object)
                .detail(format!(
                    "It does as long as rows that refer to one another have the same sharding key \
                     ({} and {}), which takes too long to look for here.",
                    shown(from_key),
                    shown(to_key)
                ))
                .hint("Make the sharding key a part of the foreign key."),
            ),
        },
    }
}

fn sharded(table: &Table) -> Option<&[String]> {
    table.sharding_key().map(|key| key.columns)
}

/// Unique constraints and indexes hold the sharding key, so that they hold over
/// all shards.
pub fn unique_constraints(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.is_spread() {
        return Vec::new();
    }
    let each = |t: &Table| -> Vec<Finding> {
        let key = shown(t.key.as_deref().unwrap_or_default());
        t.unkeyed_unique
            .iter()
            .map(|index| {
                let message = format!(
                    "unique index \"{}\" of table {} will hold per shard only",
                    index.name, t.name
                );
                let finding = if index.generated {
                    Finding::info("unique_constraints", message)
                } else {
                    Finding::warning("unique_constraints", message).hint(
                        "Make sure that the application never makes such a value on two shards.",
                    )
                };
                let values = match (index.generated, facts.source.size() > 1) {
                    (false, _) => "",
                    (true, false) => {
                        " Its values come from sequences or UUIDs, which differ on all shards."
                    }
                    (true, true) => {
                        " Its values come from sequences or UUIDs, which differ on all shards of \
                         the destination; those of the source are looked at by check node_unique."
                    }
                };
                finding
                    .object(format!("index \"{}\" on table {}", index.name, t.name))
                    .detail(format!("The sharding key {key} isn't part of it.{values}"))
            })
            .collect()
    };
    facts.tables().flat_map(each).collect()
}

/// Triggers that fire for replicated rows too.
pub fn firing_triggers(facts: &Facts<'_>) -> Vec<Finding> {
    let each = |t: &Table| -> Vec<Finding> {
        t.firing_triggers
            .iter()
            .map(|trigger| {
                Finding::warning(
                    "firing_triggers",
                    format!("trigger \"{trigger}\" of table {} fires for replicated rows", t.name),
                )
                .object(format!("trigger \"{trigger}\" on table {}", t.name))
                .detail("It is enabled ALWAYS or REPLICA: what it does is done on the source and again on the shard.")
                .hint(format!(
                    "ALTER TABLE {} ENABLE TRIGGER \"{}\";",
                    t.name,
                    trigger.replace('"', "\"\"")
                ))
            })
            .collect()
    };
    facts.tables().flat_map(each).collect()
}

/// What is done so that UPDATE and DELETE can be replicated, table by table.
pub fn replica_identity(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.verb.has_flows() {
        return Vec::new();
    }
    facts.leaves().filter_map(|t| identity(facts, t)).collect()
}

fn identity(facts: &Facts<'_>, table: &Table) -> Option<Finding> {
    let key = facts.filter_columns(table);
    let holds_key = |columns: &[String]| key.iter().all(|c| columns.contains(c));
    let has_one = table.identity != "none";
    let is_sent = table.identity_columns.iter().all(|c| table.published.contains(c));
    if table.identity == "full" {
        return incomparable(table);
    }
    if has_one && is_sent && holds_key(&table.identity_columns) {
        return None;
    }
    let lacks = match key.as_slice() {
        _ if has_one && !is_sent => {
            format!("the replica identity of {} has columns that are not published", table.name)
        }
        [] => format!("table {} has no replica identity", table.name),
        // A flow filters rows by the sharding keys and by the publication's own filter.
        _ => format!(
            "the replica identity of {} does not hold all columns that its rows are filtered by: {}",
            table.name,
            shown(&key)
        ),
    };
    let full_is_refused = table.column_list || table.generated;
    let by_index = table
        .identity_candidates
        .iter()
        .filter(|_| full_is_refused || facts.options.replica_identity != ReplicaIdentity::Full)
        .find(|index| holds_key(&index.columns));
    if let Some(index) = by_index {
        return Some(Finding::info("replica_identity", lacks).object(table.name.clone()).detail(
            format!(
                "It gets REPLICA IDENTITY USING INDEX \"{}\" during the run, which costs nothing.",
                index.name
            ),
        ));
    }
    let can_be_built = !key.is_empty() && holds_key(&table.not_null) && table.publishes_primary_key;
    let is_built = table.generated || facts.options.replica_identity == ReplicaIdentity::Index;
    if is_built && can_be_built {
        return Some(Finding::info("replica_identity", lacks).object(table.name.clone()).detail(
            "A unique index over its primary key and these columns is built CONCURRENTLY on the \
                 source, and on the shards; it is dropped at the end of the run.",
        ));
    }
    if let (false, Some(finding)) = (full_is_refused, incomparable(table)) {
        return Some(finding);
    }
    let finding = if full_is_refused {
        Finding::error("replica_identity", Kind::Unsupported, lacks).detail(settle::FULL_REFUSED)
    } else {
        Finding::info("replica_identity", lacks).detail(format!(
            "It gets REPLICA IDENTITY FULL during the run: UPDATE and DELETE write the whole old \
             row to the WAL{}.",
            match table.identity.as_str() {
                "none" => ", and the shards search for each changed row by all of its columns",
                _ => "",
            }
        ))
    };
    let columns: String = key.iter().map(|column| format!(", {}", ident(column))).collect();
    Some(finding.object(table.name.clone()).hint(format!(
        "To avoid that: CREATE UNIQUE INDEX CONCURRENTLY ON {} (...{columns}); over NOT NULL columns.",
        table.name
    )))
}

/// With REPLICA IDENTITY FULL and no primary key the subscriber compares all columns
/// (`tuples_equal` in src/backend/executor/execReplication.c).
fn incomparable(table: &Table) -> Option<Finding> {
    if table.publishes_primary_key || table.incomparable.is_empty() {
        return None;
    }
    let message = format!("changed rows of {} can't be found on another server", table.name);
    Some(
        Finding::error("replica_identity", Kind::Unsupported, message)
            .object(table.name.clone())
            .detail(format!(
                "It has no primary key or other identity that would do, and whole rows can't be \
                 compared: columns of types without equality are {}.",
                shown(&table.incomparable)
            ))
            .hint(format!(
                "ALTER TABLE {} ADD PRIMARY KEY (...);, or CREATE UNIQUE INDEX CONCURRENTLY over \
                 NOT NULL columns, with the sharding key among them.",
                table.name
            )),
    )
}

/// Rows without a sharding key, which all go to shard 0 where the placement is by hash.
pub fn sharding_key_null(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.is_spread() {
        return Vec::new();
    }
    let wrong = |t: &&Table| t.has_null_keys == Some(true) && t.key_method == Some(Method::Hash);
    facts
        .leaves()
        .filter(wrong)
        .map(|t| {
            let key = t.key.as_deref().unwrap_or_default();
            Finding::warning(
                "sharding_key_null",
                format!("sharding key {} of table {} is null in some rows", shown(key), t.name),
            )
            .object(t.name.clone())
            .detail("Rows without a key are all placed on shard 0.")
            .hint(format!(
                "Give them a key, then: ALTER TABLE {} ALTER COLUMN {} SET NOT NULL;",
                t.name,
                key.first().map_or(String::new(), |column| ident(column))
            ))
        })
        .collect()
}

/// Row security: no obstacle for a superuser, but from version 16 on for apply
/// workers, which act as the owner of the table (`TargetPrivilegesCheck` in
/// src/backend/replication/logical/worker.c).
pub fn row_security(facts: &Facts<'_>) -> Vec<Finding> {
    let as_owner = |known: &ServerFacts| known.version >= 160_000;
    // The shards will get the table as it is on the source.
    let anywhere = facts.known().any(|(_, known)| as_owner(known));
    let on_source = facts.content.iter().flat_map(|c| &c.row_security).map(|t| {
        if t.refuses_apply && anywhere {
            return stops_apply(&t.name, &"the source");
        }
        Finding::info("row_security", format!("table {} has row security", t.name))
            .object(t.name.clone())
            .detail("All of its rows move, whatever the policies say; the shards get the policies.")
    });
    let shards = facts.known_of(Side::Destination).filter(|(_, known)| as_owner(known));
    let on_shards = shards.flat_map(|(server, _)| {
        let refusing = server.existing.iter().filter(|t| t.published && t.refuses_apply);
        refusing.map(|t| stops_apply(&t.name, server.endpoint))
    });
    on_source.chain(on_shards).collect()
}

fn stops_apply(table: &str, server: &dyn Display) -> Finding {
    Finding::error(
        "row_security",
        Kind::Unsupported,
        format!("row security of table {table} on {server} would stop replication"),
    )
    .object(table)
    .detail(
        "From version 16 on, changes are applied as the table's owner, and FORCE ROW LEVEL \
         SECURITY holds for that one too. After the run it has to be put back, on the shards as \
         well.",
    )
    .hint(format!(
        "On {server}, for the time of the run: ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY;"
    ))
}

/// Unlogged tables, whose rows stay behind.
pub fn unlogged_tables(facts: &Facts<'_>) -> Vec<Finding> {
    let each = |name: &String| {
        Finding::warning("unlogged_tables", format!("rows of unlogged table {name} are not copied"))
            .object(name.clone())
            .detail("Unlogged tables can't be replicated.")
            .hint(format!("To take them along: ALTER TABLE {name} SET LOGGED;"))
    };
    facts.content.iter().flat_map(|c| &c.unlogged).map(each).collect()
}

/// Tables without columns, whose rows can't be told apart.
pub fn columnless_tables(facts: &Facts<'_>) -> Vec<Finding> {
    let each = |table: &crate::preflight::facts::Columnless| {
        let message = format!("table {} has no columns", table.name);
        let finding = match table.filled {
            true => Finding::warning("columnless_tables", message).hint(format!(
                "Give it a column, or empty it: DELETE FROM {}; VACUUM {0};",
                table.name
            )),
            false => Finding::info("columnless_tables", message),
        };
        finding.object(table.name.clone()).detail("The shards get the table, but no rows of it.")
    };
    facts.content.iter().flat_map(|c| &c.columnless).map(each).collect()
}

/// Tables that an extension has filled on the shards as well.
pub fn extension_tables(facts: &Facts<'_>) -> Vec<Finding> {
    let each = |table: &Table| {
        let extension = table.extension.as_ref()?;
        Some(
            Finding::info(
                "extension_tables",
                format!("table {} belongs to extension \"{extension}\"", table.name),
            )
            .object(table.name.clone())
            .detail(
                "Rows that the extension puts into it on the shards are replaced by the source's.",
            ),
        )
    };
    if facts.verb == crate::preflight::Verb::Replicate {
        return Vec::new();
    }
    facts.leaves().filter_map(each).collect()
}

/// Large objects, which stay behind.
pub fn large_objects(facts: &Facts<'_>) -> Vec<Finding> {
    let count = facts.content.as_ref().map_or(0, |c| c.large_objects);
    if count == 0 {
        return Vec::new();
    }
    vec![Finding::warning("large_objects", format!("{count} large objects are not copied"))
        .detail("They belong to no table and can't be replicated.")
        .hint("Move them into columns of type bytea, or copy them by other means.")]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::preflight::facts::KeyColumn;

    fn key(from: &str, to: &str) -> ForeignKey {
        ForeignKey {
            name: "k".into(),
            from: 1,
            to: 2,
            from_schema: "s".into(),
            from_table: "f".into(),
            from_name: "f".into(),
            to_name: "t".into(),
            from_columns: vec!["id".into(), from.into()],
            to_columns: vec!["id".into(), to.into()],
            crosses: None,
        }
    }

    #[test]
    fn a_foreign_key_holds_the_sharding_keys_only_where_they_match_each_other() {
        let one = |name: &str| [name.to_owned()];
        assert!(key("tenant", "tenant").holds_keys(&one("tenant"), &one("tenant")));
        assert!(key("owner", "tenant").holds_keys(&one("owner"), &one("tenant")));
        assert!(!key("other", "tenant").holds_keys(&one("tenant"), &one("tenant")));
        assert!(!key("tenant", "other").holds_keys(&one("id"), &one("other")));
    }

    #[test]
    fn a_table_without_the_column_is_not_sharded() {
        let column = |exists| KeyColumn { exists, ..KeyColumn::default() };
        let table = |columns| Table {
            key: Some(vec!["tenant".into(), "user".into()]),
            key_method: Some(Method::Hash),
            key_columns: columns,
            ..Table::default()
        };
        assert_eq!(sharded(&table(vec![column(true), column(false)])), None);
        assert!(sharded(&table(vec![column(true), column(true)])).is_some());
    }
}
