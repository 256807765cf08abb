//! Placement as SQL conditions over a key: what row filters and triggers say.
//! Built-in operators only, literals of the key's type, never null.
use crate::cluster::keymap::{KeyMap, Keys, Range};
use crate::cluster::placement::ShardNo;
use crate::remote::quote::literal;

/// A key in SQL.
#[derive(Debug, Clone, Copy)]
pub struct KeySql<'a> {
    /// The expression, quoted.
    pub expression: &'a str,
    /// Its type's name, as SQL.
    pub type_name: &'a str,
}

impl KeySql<'_> {
    fn literal(&self, text: &str) -> String {
        format!("{}::{}", literal(text), self.type_name)
    }

    /// The type of an array to compare the key with by `ANY`; `None` where it has to be
    /// compared with one literal after the other.
    ///
    /// A row filter takes no array that has to be converted first (`ArrayCoerceExpr`), as
    /// where a type uses the operators of another one; and `ANY` looks into arrays, whatever
    /// their dimensions.
    fn array_type(&self) -> Option<&str> {
        match self.type_name {
            "character varying" => Some("text"),
            "cidr" => None,
            name if name.ends_with(']') || name.starts_with("reg") => None,
            name => Some(name),
        }
    }
}

impl KeyMap<String> {
    /// True for the keys of a shard, false for all others.
    pub fn takes(&self, shard: ShardNo, key: KeySql<'_>) -> String {
        let k = key.expression;
        if self.default == Some(shard) {
            let null_is_elsewhere = self.null.is_some_and(|s| s != shard);
            return match (self.mapped(|s| s != shard, key), null_is_elsewhere) {
                (None, false) => "true".to_owned(),
                (None, true) => format!("{k} IS NOT NULL"),
                (Some(others), false) => format!("({k} IS NULL OR NOT ({others}))"),
                (Some(others), true) => format!("({k} IS NOT NULL AND NOT ({others}))"),
            };
        }
        match (self.mapped(|s| s == shard, key), self.null == Some(shard)) {
            (None, false) => "false".to_owned(),
            (None, true) => format!("{k} IS NULL"),
            (Some(own), false) => format!("({k} IS NOT NULL AND ({own}))"),
            (Some(own), true) => format!("({k} IS NULL OR ({own}))"),
        }
    }

    /// True for keys that no shard takes; `None` where there are none.
    pub fn takes_not(&self, key: KeySql<'_>) -> Option<String> {
        if self.default.is_some() {
            return None;
        }
        let k = key.expression;
        Some(match (self.mapped(|_| true, key), self.null.is_some()) {
            (None, false) => "true".to_owned(),
            (None, true) => format!("{k} IS NOT NULL"),
            (Some(all), false) => format!("({k} IS NULL OR NOT ({all}))"),
            (Some(all), true) => format!("({k} IS NOT NULL AND NOT ({all}))"),
        })
    }

    /// True for keys other than null that are mapped to one of these shards; `None` where none is.
    fn mapped(&self, wanted: impl Fn(ShardNo) -> bool, key: KeySql<'_>) -> Option<String> {
        let k = key.expression;
        match &self.keys {
            Keys::Values(values) => {
                let texts: Vec<&str> =
                    values.iter().filter(|v| wanted(v.shard)).map(|v| v.key.as_str()).collect();
                match key.array_type() {
                    _ if texts.is_empty() => None,
                    None => {
                        let each: Vec<String> = texts
                            .iter()
                            .map(|t| format!("{k} OPERATOR(pg_catalog.=) {}", key.literal(t)))
                            .collect();
                        Some(each.join(" OR "))
                    }
                    Some(type_name) => Some(format!(
                        "{k} OPERATOR(pg_catalog.=) ANY ({}::{type_name}[])",
                        literal(&array(&texts)),
                    )),
                }
            }
            Keys::Ranges(ranges) => {
                let all: Vec<String> =
                    ranges.iter().filter(|r| wanted(r.shard)).map(|r| within(r, key)).collect();
                (!all.is_empty()).then(|| all.join(" OR "))
            }
        }
    }
}

fn within(range: &Range<String>, key: KeySql<'_>) -> String {
    let k = key.expression;
    let from = |l: &String| format!("{k} OPERATOR(pg_catalog.>=) {}", key.literal(l));
    let to = |u: &String| format!("{k} OPERATOR(pg_catalog.<) {}", key.literal(u));
    match (&range.lower, &range.upper) {
        (None, None) => format!("{k} IS NOT NULL"),
        (Some(lower), None) => from(lower),
        (None, Some(upper)) => to(upper),
        (Some(lower), Some(upper)) => format!("({} AND {})", from(lower), to(upper)),
    }
}

/// An array as its type reads it.
fn array(texts: &[&str]) -> String {
    let quoted: Vec<String> = texts
        .iter()
        .map(|t| format!("\"{}\"", t.replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    format!("{{{}}}", quoted.join(","))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::keymap::Value;

    const KEY: KeySql<'static> = KeySql { expression: "\"k\"", type_name: "text" };

    fn list(null: Option<u32>, default: Option<u32>) -> KeyMap {
        let value = |key: &str, shard| Value { key: key.to_owned(), shard: ShardNo(shard) };
        KeyMap {
            keys: Keys::Values(vec![value("a", 0), value("it's", 0), value("b\"\\", 1)]),
            null: null.map(ShardNo),
            default: default.map(ShardNo),
        }
    }

    #[test]
    fn listed_keys_are_compared_with_an_array_of_the_type() {
        assert_eq!(
            list(None, None).takes(ShardNo(0), KEY),
            "(\"k\" IS NOT NULL AND (\"k\" OPERATOR(pg_catalog.=) ANY ('{\"a\",\"it''s\"}'::text[])))"
        );
        assert_eq!(list(None, None).takes(ShardNo(2), KEY), "false");
        assert!(list(None, None)
            .takes(ShardNo(1), KEY)
            .contains("ANY (E'{\"b\\\\\"\\\\\\\\\"}'::text[])"));
    }

    #[test]
    fn the_default_shard_takes_what_no_other_takes() {
        let to_others = list(None, Some(1)).takes(ShardNo(1), KEY);
        assert!(to_others.starts_with("(\"k\" IS NULL OR NOT ("), "{to_others}");
        let without_null = list(Some(0), Some(1)).takes(ShardNo(1), KEY);
        assert!(without_null.starts_with("(\"k\" IS NOT NULL AND NOT ("), "{without_null}");
        assert!(list(Some(0), Some(1)).takes(ShardNo(0), KEY).starts_with("(\"k\" IS NULL OR ("));
        assert_eq!(list(None, Some(1)).takes_not(KEY), None);
    }

    #[test]
    fn null_is_taken_by_nobody_unless_mapped() {
        assert!(list(None, None).takes_not(KEY).unwrap().starts_with("(\"k\" IS NULL OR NOT ("));
        let mapped = list(Some(2), None);
        assert!(mapped.takes_not(KEY).unwrap().starts_with("(\"k\" IS NOT NULL AND NOT ("));
        assert_eq!(mapped.takes(ShardNo(2), KEY), "\"k\" IS NULL");
    }

    #[test]
    fn ranges_are_half_open() {
        let key = KeySql { expression: "NEW.\"k\"", type_name: "bigint" };
        let range = |lower: Option<&str>, upper: Option<&str>, shard| Range {
            lower: lower.map(Into::into),
            upper: upper.map(Into::into),
            shard: ShardNo(shard),
        };
        let map = KeyMap {
            keys: Keys::Ranges(vec![
                range(None, Some("0"), 0),
                range(Some("0"), Some("9"), 1),
                range(Some("9"), None, 1),
            ]),
            null: None,
            default: None,
        };
        assert_eq!(
            map.takes(ShardNo(1), key),
            "(NEW.\"k\" IS NOT NULL AND ((NEW.\"k\" OPERATOR(pg_catalog.>=) '0'::bigint AND \
             NEW.\"k\" OPERATOR(pg_catalog.<) '9'::bigint) OR NEW.\"k\" OPERATOR(pg_catalog.>=) \
             '9'::bigint))"
        );
    }

    #[test]
    fn types_without_operators_of_their_own_are_compared_one_by_one() {
        for type_name in ["integer[]", "cidr"] {
            let sql = list(None, None).takes(ShardNo(1), KeySql { expression: "\"k\"", type_name });
            let one = format!("\"k\" OPERATOR(pg_catalog.=) E'b\"\\\\'::{type_name}");
            assert!(sql.contains(&one), "{sql}");
        }
        let varchar = KeySql { expression: "\"k\"", type_name: "character varying" };
        assert!(list(None, None).takes(ShardNo(0), varchar).contains("::text[])"));
    }
}
