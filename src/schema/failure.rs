//! What a failed schema statement looks like to a DBA; no secrets in it.
use crate::error::Error;
use crate::remote::Endpoint;
use crate::state::schema::Statement;

/// Characters of a statement that an error shows.
const SQL_LIMIT: usize = 500;

/// The error of a statement: which one, where, what the server said, its text.
pub fn of_statement(shard: &Endpoint, statement: &Statement, error: &Error) -> Error {
    let said = error.detail.clone().unwrap_or_else(|| error.message.clone());
    let mut out = Error::new(
        error.kind.clone(),
        format!("schema statement for {} failed on {shard}", object(statement)),
    )
    .detail(format!("{said} Statement {}: {}", statement.ordinal, shown(statement)));
    out.hint = Some(hint(error, statement));
    out
}

/// `index "public.users_name"`.
pub fn object(statement: &Statement) -> String {
    let kind = match statement.kind.as_str() {
        "refresh" => "materialized view".to_owned(),
        kind => kind.replace('_', " "),
    };
    let own = (&statement.schema_name, &statement.object_name);
    let table = (&statement.table_schema, &statement.table_name);
    match [own, table].into_iter().find(|(_, name)| name.is_some()) {
        Some((Some(schema), Some(name))) => format!("{kind} \"{schema}.{name}\""),
        Some((None, Some(name))) => format!("{kind} \"{name}\""),
        _ => kind,
    }
}

fn hint(error: &Error, statement: &Statement) -> String {
    let resume = format!("SELECT reshard_resume({});", statement.task_id);
    match error.sqlstate() {
        "42P06" | "42P07" | "42710" | "42723" | "42701" => format!(
            "Drop what is in the way on that shard, or start with an empty database; then {resume}"
        ),
        "42704" if error.detail.as_deref().is_some_and(|d| d.contains("role \"")) => {
            format!("Create the role on that server, or start with option no_owner; then {resume}")
        }
        "42501" => format!("Connect to the shard as a superuser; then {resume}"),
        "53100" => format!("Free disk space on that server; then {resume}"),
        _ => format!("Mend the cause on that shard; then {resume}"),
    }
}

/// The text of a statement, cut, with passwords blanked.
pub fn shown(statement: &Statement) -> String {
    cut(statement.shown.as_deref().unwrap_or(&statement.sql))
}

/// A text, cut, with passwords blanked.
pub fn cut(sql: &str) -> String {
    let blank = without_passwords(sql);
    match blank.char_indices().nth(SQL_LIMIT) {
        Some((end, _)) => format!("{}...", &blank[..end]),
        None => blank,
    }
}

/// Blanks the literal after each word `password`, as in the options of user
/// mappings and in connection strings.
fn without_passwords(sql: &str) -> String {
    let lower = sql.to_ascii_lowercase();
    let mut out = String::with_capacity(sql.len());
    let mut at = 0;
    while let Some(found) = lower[at..].find("password") {
        let word_end = at + found + "password".len();
        let rest = &sql[word_end..];
        let gap = rest.len() - rest.trim_start_matches([' ', '=']).len();
        out.push_str(&sql[at..word_end + gap]);
        at = word_end + gap;
        // `password=x` in a connection string, `password 'x'` in options.
        let quoted = rest[gap..].starts_with(['\'', 'E', 'e'])
            && rest[gap..].trim_start_matches(['E', 'e']).starts_with('\'');
        let length = secret_length(&sql[at..]);
        if gap > 0 && length > 0 && (quoted || rest[..gap].contains('=')) {
            out.push_str("'***'");
            at += length;
        }
    }
    out.push_str(&sql[at..]);
    out
}

/// Bytes of the quoted literal, or of the unquoted value, that a text begins with.
fn secret_length(text: &str) -> usize {
    let quote = usize::from(text.starts_with(['E', 'e']));
    if !text[quote..].starts_with('\'') {
        return text.find(|c: char| c.is_whitespace() || "',;)".contains(c)).unwrap_or(text.len());
    }
    let mut chars = text[quote + 1..].char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' if quote == 1 => drop(chars.next()),
            '\'' if chars.peek().is_some_and(|(_, next)| *next == '\'') => drop(chars.next()),
            '\'' => return quote + 1 + i + 1,
            _ => {}
        }
    }
    text.len()
}

/// A program's messages without the password of the server it talked to.
pub fn without_secret(text: &str, node: &Endpoint) -> String {
    match node.conninfo.split_secret().1 {
        Some(secret) if !secret.is_empty() => text.replace(&secret, "***"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_user_mappings_are_blanked() {
        assert_eq!(
            without_passwords("CREATE USER MAPPING ... OPTIONS (password 'a''b', \"user\" 'x')"),
            "CREATE USER MAPPING ... OPTIONS (password '***', \"user\" 'x')"
        );
        assert_eq!(without_passwords("password E'a\\'b') x"), "password '***') x");
        assert_eq!(
            without_passwords("'host=h password=geheim dbname=d'"),
            "'host=h password='***' dbname=d'"
        );
    }

    #[test]
    fn columns_called_password_stay() {
        let sql = "CREATE INDEX i ON t (password_hash)";
        assert_eq!(without_passwords(sql), sql);
    }

    #[test]
    fn long_statements_are_cut() {
        let text = cut(&"ä".repeat(600));
        assert_eq!(text.chars().count(), 503);
    }
}
