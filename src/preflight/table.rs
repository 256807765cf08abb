//! Checks of the tables and what is built on them.
use crate::error::Kind;
use crate::preflight::facts::{Facts, ForeignKey, Table};
use crate::preflight::finding::{Finding, Severity};

/// Foreign keys hold on each shard by itself.
pub fn foreign_keys(facts: &Facts<'_>) -> Vec<Finding> {
    let Some(content) = &facts.content else { return Vec::new() };
    let mut found: Vec<Finding> =
        content.foreign_keys.iter().filter_map(|k| judge(facts, k)).collect();
    if !facts.verb.makes_schema() {
        // Whether the shards get the constraint is up to the user.
        found.iter_mut().for_each(|f| f.severity = Severity::Warning);
    }
    found
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
            "Add that table to the publication: ALTER PUBLICATION ... ADD TABLE ...;",
        ));
    };
    if !facts.is_spread() {
        return None;
    }
    let drop = format!(
        "Drop the constraint, or change the sharding keys: ALTER TABLE {} DROP CONSTRAINT \"{}\";",
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
        (Some(from_key), Some(to_key)) if key.holds_keys(from_key, to_key) => None,
        (Some(from_key), Some(to_key)) if from.key_type != to.key_type => Some(error(
            format!(
                "Its tables are sharded by \"{from_key}\" and \"{to_key}\", which are of different types."
            ),
            &drop,
        )),
        (Some(from_key), Some(to_key)) => match key.crosses {
            Some(false) => None,
            Some(true) => Some(error(
                format!(
                    "There are rows of {} whose sharding key \"{from_key}\" differs from \
                     \"{to_key}\" of the row in {} to which they refer.",
                    key.from_name, key.to_name
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
                     (\"{from_key}\" and \"{to_key}\"), which takes too long to look for here."
                ))
                .hint("Make the sharding key a part of the foreign key."),
            ),
        },
    }
}

fn sharded(table: &Table) -> Option<&str> {
    table.key.as_deref().filter(|_| table.is_sharded())
}

/// Unique constraints and indexes hold the sharding key, so that they hold over
/// all shards.
pub fn unique_constraints(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.is_spread() {
        return Vec::new();
    }
    let each = |t: &Table| -> Vec<Finding> {
        let key = t.key.clone().unwrap_or_default();
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
                let values = if index.generated {
                    " Its values come from sequences or UUIDs, which differ on all shards."
                } else {
                    ""
                };
                finding
                    .object(format!("index \"{}\" on table {}", index.name, t.name))
                    .detail(format!("The sharding key \"{key}\" isn't part of it.{values}"))
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

/// Tables whose rows are found by all of their columns.
pub fn replica_identity(facts: &Facts<'_>) -> Vec<Finding> {
    facts
        .leaves()
        .filter(|t| t.identity == "none")
        .map(|t| {
            Finding::info("replica_identity", format!("table {} has no primary key", t.name))
                .object(t.name.clone())
                .detail("It gets REPLICA IDENTITY FULL during the run: more WAL, and the shards search for each changed row by all of its columns.")
                .hint(format!("ALTER TABLE {} ADD PRIMARY KEY (...);", t.name))
        })
        .collect()
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

    fn key(from: &str, to: &str) -> ForeignKey {
        ForeignKey {
            name: "k".into(),
            from: 1,
            to: 2,
            from_name: "f".into(),
            to_name: "t".into(),
            from_columns: vec!["id".into(), from.into()],
            to_columns: vec!["id".into(), to.into()],
            crosses: None,
        }
    }

    #[test]
    fn a_foreign_key_holds_the_sharding_keys_only_where_they_match_each_other() {
        assert!(key("tenant", "tenant").holds_keys("tenant", "tenant"));
        assert!(key("owner", "tenant").holds_keys("owner", "tenant"));
        assert!(!key("other", "tenant").holds_keys("tenant", "tenant"));
        assert!(!key("tenant", "other").holds_keys("id", "other"));
    }

    #[test]
    fn a_table_without_the_column_is_not_sharded() {
        let table = Table { key: Some("tenant".into()), ..Table::default() };
        assert_eq!(sharded(&table), None);
        assert_eq!(sharded(&Table { key_exists: true, ..table }), Some("tenant"));
    }
}
