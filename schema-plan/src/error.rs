//! The errors of the planner. Each names the line and quotes the statement.

use crate::lexer::{next_token, Token};
use crate::Kind;
use thiserror::Error;

/// Longest quote of a statement in an error, in bytes.
const QUOTE_LIMIT: usize = 2000;

/// Why a dump can't be planned.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// The text ends inside of a statement, string or comment.
    #[error("unterminated {what} at line {line}: {quote}")]
    Unterminated {
        /// E.g. `quoted string`.
        what: &'static str,
        /// Line of the dump where it begins, from 1.
        line: usize,
        /// How it begins.
        quote: String,
    },
    /// A backslash command other than those that pg_dump writes.
    #[error("unknown psql command at line {line}: {quote}")]
    UnknownCommand {
        /// Line of the dump, from 1.
        line: usize,
        /// The command.
        quote: String,
    },
    /// libpg_query refuses the statement.
    #[error("cannot parse the statement at line {line} ({message}): {quote}")]
    Parse {
        /// Line of the dump, from 1.
        line: usize,
        /// What the parser says.
        message: String,
        /// The statement.
        quote: String,
    },
    /// A statement that pg_dump isn't known to write.
    #[error("unknown kind of statement at line {line} ({what}): {quote}")]
    Unknown {
        /// Line of the dump, from 1.
        line: usize,
        /// Which part of it isn't known.
        what: String,
        /// The statement.
        quote: String,
    },
    /// The dump has rows or sequence values.
    #[error("the dump holds data at line {line}; use pg_dump --schema-only: {quote}")]
    HoldsData {
        /// Line of the dump, from 1.
        line: usize,
        /// The statement.
        quote: String,
    },
    /// The planner's thread couldn't be started, or died.
    #[error("cannot run the planner: {0}")]
    Stack(String),
}

/// The beginning of a statement, short enough for a message, and without the
/// part that may hold a password.
pub(crate) fn quote(sql: &str) -> String {
    let sql = without_secrets(sql.trim());
    if sql.len() <= QUOTE_LIMIT {
        return sql;
    }
    let mut end = QUOTE_LIMIT;
    while !sql.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &sql[..end])
}

/// The text of a statement that isn't going to be run, without the passwords
/// that it may hold.
pub(crate) fn without_secrets(sql: &str) -> String {
    let mut words = sql.split_ascii_whitespace().skip(1);
    let secret = match (words.next(), words.next()) {
        (Some("USER"), Some("MAPPING")) | (Some("SERVER"), _) => " OPTIONS (",
        (Some("SUBSCRIPTION"), _) => " CONNECTION ",
        _ => return sql.to_owned(),
    };
    match sql.find(secret) {
        Some(start) => format!("{}{secret}...", &sql[..start]),
        None => sql.to_owned(),
    }
}

/// The text for people of a statement that may hold secrets; none of another
/// kind. Of user mappings no option's value is shown, of foreign servers none
/// whose name hints at a secret.
pub(crate) fn shown(kind: Kind, sql: &str) -> Option<String> {
    let secret: fn(&str) -> bool = match kind {
        Kind::UserMapping => |_| true,
        Kind::ForeignServer => |name| {
            let name = name.to_ascii_lowercase();
            ["pass", "secret", "token", "key", "cred"].iter().any(|word| name.contains(word))
        },
        _ => return None,
    };
    let bytes = sql.as_bytes();
    let (mut out, mut name, mut in_options, mut at) = (String::new(), "", false, 0);
    while at < bytes.len() {
        let Ok((token, end)) = next_token(bytes, at, false) else { break };
        let text = &sql[at..end];
        let is_name = token == Token::Word || text.starts_with('"');
        if is_name {
            in_options |= text.eq_ignore_ascii_case("options");
            name = text;
        }
        match token {
            Token::Quoted if in_options && !is_name && secret(name) => out.push_str("'***'"),
            _ => out.push_str(text),
        }
        at = end;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_options_that_may_be_secret_are_not_shown() {
        let mapping =
            "CREATE USER MAPPING FOR \"it's\" SERVER s OPTIONS (\n    password 'a''b',\n    \"user\" E'u\\'x'\n)";
        assert_eq!(
            shown(Kind::UserMapping, mapping).as_deref(),
            Some("CREATE USER MAPPING FOR \"it's\" SERVER s OPTIONS (\n    password '***',\n    \"user\" '***'\n)")
        );
        let server =
            "CREATE SERVER s TYPE 't' FOREIGN DATA WRAPPER w OPTIONS (host 'h', \"apiKey\" 'k')";
        assert_eq!(
            shown(Kind::ForeignServer, server).as_deref(),
            Some("CREATE SERVER s TYPE 't' FOREIGN DATA WRAPPER w OPTIONS (host 'h', \"apiKey\" '***')")
        );
        assert_eq!(shown(Kind::Table, "CREATE TABLE t ()"), None);
    }

    #[test]
    fn quotes_are_short_and_hold_no_password() {
        let long = format!("SELECT '{}'", "\u{e9}".repeat(QUOTE_LIMIT));
        assert!(quote(&long).len() <= QUOTE_LIMIT + 3);
        assert!(quote(&long).ends_with("..."));
        assert_eq!(
            quote("CREATE USER MAPPING FOR a SERVER s OPTIONS (\n    password 'x'\n)"),
            "CREATE USER MAPPING FOR a SERVER s OPTIONS (..."
        );
        assert_eq!(
            quote("CREATE SUBSCRIPTION s CONNECTION 'password=x' PUBLICATION p"),
            "CREATE SUBSCRIPTION s CONNECTION ..."
        );
    }
}
