//! A plan for people: a script that psql can run, with headings.

use crate::{Plan, Statement, Step};
use std::fmt::{self, Write};

/// The plan as an SQL script in the order of execution.
///
/// Headings, and what is left out with its reason, are comments.
///
/// # Errors
///
/// None but those of the writer.
pub fn to_script(plan: &Plan, out: &mut impl Write) -> fmt::Result {
    let version = plan.server_version.as_deref().unwrap_or("unknown");
    writeln!(out, "-- Plan of a dump from server version {version}")?;
    for step in Step::ALL {
        let count = plan.statements.iter().filter(|s| s.step == step).count();
        let order = if step.is_parallel() { ", in any order" } else { "" };
        writeln!(out, "--   {:<12} {count:>6} statements{order}", step.as_str())?;
    }
    writeln!(out, "--   {:<12} {:>6} statements\n", "left out", plan.left_out.len())?;
    for sql in &plan.session {
        writeln!(out, "{sql};")?;
    }
    for step in Step::ALL {
        let mut statements = plan.statements.iter().filter(|s| s.step == step).peekable();
        if statements.peek().is_some() {
            writeln!(out, "\n-- ===== {step} =====")?;
        }
        for statement in statements {
            one(statement, &plan.session, out)?;
        }
    }
    if !plan.left_out.is_empty() {
        writeln!(out, "\n-- ===== left out =====")?;
    }
    for left_out in &plan.left_out {
        let name = full_name(&left_out.schema_name, &left_out.object_name);
        writeln!(out, "-- {} {}: {}", left_out.kind, one_line(&name), left_out.reason)?;
    }
    Ok(())
}

/// The statement that undoes one of [`Statement::settings`]. After it, what
/// [`Plan::session`] says of the same setting has to be said again.
pub fn reset_of(setting: &str) -> String {
    let mut words = setting.split_whitespace().skip(1).peekable();
    if words.peek().is_some_and(|word| word.eq_ignore_ascii_case("session")) {
        return "RESET SESSION AUTHORIZATION".to_owned();
    }
    let name = words.next().unwrap_or("ALL");
    format!("RESET {}", name.split('=').next().unwrap_or(name))
}

fn one(statement: &Statement, session: &[String], out: &mut impl Write) -> fmt::Result {
    let name = full_name(&statement.schema_name, &statement.object_name);
    let table = full_name(&statement.table_schema, &statement.table_name);
    write!(out, "\n-- {} {} {}", statement.ordinal, statement.kind, one_line(&name))?;
    if !table.is_empty() && table != name {
        write!(out, " on {}", one_line(&table))?;
    }
    writeln!(out)?;
    for setting in &statement.settings {
        writeln!(out, "{setting};")?;
    }
    writeln!(out, "{};", statement.sql)?;
    for setting in &statement.settings {
        let reset = reset_of(setting);
        writeln!(out, "{reset};")?;
        // What the session began with comes back.
        let name = reset.trim_start_matches("RESET ");
        for sql in session.iter().filter(|sql| sql.split(' ').nth(1) == Some(name)) {
            writeln!(out, "{sql};")?;
        }
    }
    Ok(())
}

fn full_name(schema: &Option<String>, name: &Option<String>) -> String {
    match (schema, name) {
        (Some(schema), Some(name)) => format!("{schema}.{name}"),
        (_, Some(name)) => name.clone(),
        _ => String::new(),
    }
}

/// A name may contain a newline, which would end the comment.
fn one_line(name: &str) -> String {
    name.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_undone_by_name() {
        assert_eq!(reset_of("SET default_tablespace = ts1"), "RESET default_tablespace");
        assert_eq!(reset_of("SET x.y='a b'"), "RESET x.y");
        assert_eq!(reset_of("SET SESSION AUTHORIZATION bob"), "RESET SESSION AUTHORIZATION");
    }
}
