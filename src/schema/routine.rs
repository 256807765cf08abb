//! What tells a function, procedure or aggregate from others of its name: its arguments,
//! from the text of the statement that makes it. Pure.
use crate::schema::text::{plain, word};

/// The arguments as DROP takes them: as they stand, without defaults.
pub fn arguments(sql: &str) -> Option<String> {
    let open = plain(sql).find(|(_, c)| *c == '(')?.0;
    let (mut depth, mut from) = (0, open + 1);
    let mut kept = Vec::new();
    for (at, c) in plain(sql).skip_while(|(at, _)| *at < open) {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 || depth == 1 && c == ',' {
            kept.push(without_default(&sql[from..at]));
            from = at + 1;
        }
        if depth == 0 {
            return Some(kept.join(", "));
        }
    }
    None
}

fn without_default(argument: &str) -> &str {
    let end = word(argument, "DEFAULT").unwrap_or(argument.len());
    argument[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_go_and_quotes_stay() {
        let is = |sql: &str, expected: &str| assert_eq!(arguments(sql).as_deref(), Some(expected));
        is("CREATE FUNCTION s.f() RETURNS integer", "");
        is(
            "CREATE FUNCTION s.f(a text DEFAULT 'x, DEFAULT)'::text, OUT b s.\"T,(\", VARIADIC c integer[]) RETURNS record",
            "a text, OUT b s.\"T,(\", VARIADIC c integer[]",
        );
        is(
            "CREATE PROCEDURE s.p(INOUT \"DEFAULT\" integer DEFAULT (1 + abs(2)), \"in\" numeric DEFAULT ARRAY[1, 2])",
            "INOUT \"DEFAULT\" integer, \"in\" numeric",
        );
        is("CREATE AGGREGATE s.a(*) (\n SFUNC = f\n)", "*");
    }
}
