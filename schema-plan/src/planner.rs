//! From the text of a dump to a plan: one pass, one parse per statement.

use crate::attribute_version::{self, Without};
use crate::classify::{classify, Name, Place, Refused, Subject};
use crate::error::{quote, shown, without_secrets, PlanError};
use crate::leave_out::{Options, Rules};
use crate::order::{is_movable, Order};
use crate::session::{Session, Taken};
use crate::split::{Piece, Splitter};
use crate::{Kind, LeftOut, Plan, Statement, Step, CONTRACT_VERSION};
use pg_query::{NodeEnum, ParserOptions};
use std::thread;

/// Parse trees of views with thousands of nested expressions need a deep
/// stack; pages of it that aren't touched cost nothing.
const STACK_BYTES: usize = 256 * 1024 * 1024;

/// Plans the text of `pg_dump --schema-only` in plain format.
///
/// The text has to be whole and in the order of pg_dump, of version 15 to 18.
///
/// # Errors
///
/// Whatever isn't understood is an error that quotes it: text that doesn't
/// parse, statements that pg_dump isn't known to write, and data.
pub fn plan(dump: &str, options: Options) -> Result<Plan, PlanError> {
    thread::scope(|scope| {
        let planner = thread::Builder::new()
            .name("planner".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || plan_here(dump, options))
            .map_err(|error| PlanError::Stack(error.to_string()))?;
        planner.join().map_err(|_| PlanError::Stack("the planner panicked".to_owned()))?
    })
}

fn plan_here(dump: &str, options: Options) -> Result<Plan, PlanError> {
    let mut planner = Planner {
        server_version: None,
        session: Session::default(),
        rules: Rules::new(options),
        order: Order::default(),
        statements: Vec::new(),
        unfilled: Vec::new(),
        left_out: Vec::new(),
    };
    let mut splitter = Splitter::new(dump);
    while let Some(piece) = splitter.next_piece()? {
        match piece {
            Piece::Comment(text) => planner.comment(text),
            Piece::Command { line, text } => planner.command(line, text)?,
            Piece::Statement { line, sql } => {
                let parsed = parse(line, sql, splitter.backslashes)?;
                match planner.session.take(&parsed.node, sql) {
                    Taken::No => planner.statement(line, sql, &parsed)?,
                    Taken::Yes => {}
                    Taken::Backslashes(known) => splitter.backslashes = known,
                }
            }
        }
    }
    Ok(planner.finish())
}

struct Planner {
    server_version: Option<String>,
    session: Session,
    rules: Rules,
    order: Order,
    /// With whether each may be moved before the data.
    statements: Vec<(Statement, bool)>,
    unfilled: Vec<Name>,
    left_out: Vec<LeftOut>,
}

impl Planner {
    fn comment(&mut self, text: &str) {
        if let Some(version) = text.strip_prefix("Dumped from database version ") {
            self.server_version = version.split_whitespace().next().map(str::to_owned);
        }
    }

    fn command(&mut self, line: usize, text: &str) -> Result<(), PlanError> {
        let reason = match text.split_whitespace().next() {
            Some("\\restrict" | "\\unrestrict") => "guards psql, which doesn't run the plan",
            Some("\\connect") => "the plan runs in the shard's database",
            _ => return Err(PlanError::UnknownCommand { line, quote: quote(text) }),
        };
        self.left_out.push(LeftOut {
            kind: Kind::PsqlCommand,
            schema_name: None,
            object_name: None,
            reason: reason.to_owned(),
            sql: text.to_owned(),
        });
        Ok(())
    }

    fn statement(&mut self, line: usize, sql: &str, parsed: &Parsed) -> Result<(), PlanError> {
        let mut subject = classify(&parsed.node).map_err(|refused| match refused {
            Refused::Unknown(what) => PlanError::Unknown { line, what, quote: quote(sql) },
            Refused::Data => PlanError::HoldsData { line, quote: quote(sql) },
        })?;
        if let Some(reason) = self.rules.reason(&subject, &parsed.reads) {
            self.leave_out(subject, reason, sql);
            return Ok(());
        }
        let rest = match attribute_version::without(&parsed.node) {
            Ok(Without::Same) => None,
            Ok(Without::Nothing) => {
                self.leave_out(subject, "versions of columns are the server's own", sql);
                return Ok(());
            }
            Ok(Without::Statement(rest)) => Some(rest),
            Err(error) => {
                let (message, quote) = (error.to_string(), quote(sql));
                return Err(PlanError::Parse { line, message, quote });
            }
        };
        let sql = rest.as_deref().unwrap_or(sql);
        self.session.start();
        if self.order.is_out_of_order(&subject) {
            self.move_before_data();
        }
        let step = self.order.place(&mut subject, sql);
        if subject.unfilled {
            self.unfilled.extend(subject.name.clone());
        }
        let settings = self.session.settings_for(subject.kind);
        match validation_of(&subject, step) {
            Some((validation, text)) => {
                self.push(subject, step, settings, format!("{sql} NOT VALID"));
                self.push(validation, Step::Validate, Vec::new(), text);
            }
            None => self.push(subject, step, settings, sql.to_owned()),
        }
        Ok(())
    }

    fn leave_out(&mut self, subject: Subject, reason: &str, sql: &str) {
        let (schema_name, object_name) = split_name(subject.name);
        self.left_out.push(LeftOut {
            kind: subject.kind,
            schema_name,
            object_name,
            reason: reason.to_owned(),
            sql: without_secrets(sql),
        });
    }

    fn move_before_data(&mut self) {
        for (statement, movable) in &mut self.statements {
            if *movable {
                statement.step = Step::Pre;
                statement.phase = Step::Pre.phase();
            }
        }
        self.order.restart();
    }

    fn push(&mut self, subject: Subject, step: Step, settings: Vec<String>, sql: String) {
        let movable = is_movable(&subject);
        let (schema_name, object_name) = split_name(subject.name);
        let (table_schema, table_name) = split_name(subject.table);
        let (referenced, referenced_columns) = subject.referenced.unzip();
        let (referenced_schema, referenced_table) = split_name(referenced);
        let statement = Statement {
            ordinal: 0,
            phase: step.phase(),
            step,
            kind: subject.kind,
            object_kind: subject.object,
            schema_name,
            object_name,
            table_schema,
            table_name,
            columns: subject.columns,
            referenced_schema,
            referenced_table,
            referenced_columns: referenced_columns.unwrap_or_default(),
            settings,
            shown: shown(subject.kind, &sql),
            sql,
        };
        self.statements.push((statement, movable));
    }

    fn finish(mut self) -> Plan {
        // pg_dump fills materialized views last, in the order of their making,
        // and doesn't in a dump without data.
        for view in std::mem::take(&mut self.unfilled) {
            let sql = format!("REFRESH MATERIALIZED VIEW {}", quoted(&view));
            let subject = Subject::of_relation(Kind::Refresh, Kind::MaterializedView, view);
            // Off, as dumps have it, makes an error of each policy that holds for the view's owner.
            self.push(subject, Step::Rest, vec!["SET row_security = on".to_owned()], sql);
        }
        self.statements.sort_by_key(|(statement, _)| statement.step);
        let numbered = (1..).zip(self.statements);
        let statements =
            numbered.map(|(ordinal, (statement, _))| Statement { ordinal, ..statement }).collect();
        Plan {
            version: CONTRACT_VERSION,
            server_version: self.server_version,
            session: self.session.into_preamble(),
            statements,
            left_out: self.left_out,
        }
    }
}

/// What validates a foreign key afterwards: its table can be read and written
/// meanwhile, and that of others validated at the same time.
fn validation_of(subject: &Subject, step: Step) -> Option<(Subject, String)> {
    if !subject.validated_apart || step != Step::ForeignKeys {
        return None;
    }
    let (table, name) = (subject.table.as_ref()?, subject.name.as_ref()?);
    let constraint = quoted(&Name::bare(&name.name));
    let text = format!("ALTER TABLE ONLY {} VALIDATE CONSTRAINT {constraint}", quoted(table));
    let place = Place::MovedTo(Step::Validate);
    let of = Subject { kind: Kind::Validation, validated_apart: false, place, ..subject.clone() };
    Some((of, text))
}

/// A statement's parse tree.
struct Parsed {
    node: NodeEnum,
    /// The relations that a view reads.
    reads: Vec<Name>,
}

fn parse(line: usize, sql: &str, backslashes: bool) -> Result<Parsed, PlanError> {
    let failed = |message: String| PlanError::Parse { line, message, quote: quote(sql) };
    let options = match backslashes {
        true => ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS,
        false => ParserOptions::DEFAULT,
    };
    let parsed = pg_query::parse(sql, options).map_err(|error| failed(error.to_string()))?;
    let mut statements = parsed.protobuf.stmts.into_iter();
    let node = statements.next().and_then(|raw| raw.stmt?.node);
    let (Some(node), None) = (node, statements.next()) else {
        return Err(failed("not one statement".to_owned()));
    };
    let reads = match &node {
        NodeEnum::ViewStmt(_) | NodeEnum::CreateTableAsStmt(_) => {
            parsed.tables.iter().map(|(name, _)| dotted(name)).collect()
        }
        _ => Vec::new(),
    };
    Ok(Parsed { node, reads })
}

/// pg_query gives the names of relations as `schema.name`, unquoted.
fn dotted(name: &str) -> Name {
    match name.split_once('.') {
        Some((schema, name)) => Name { schema: Some(schema.to_owned()), name: name.to_owned() },
        None => Name::bare(name),
    }
}

fn split_name(name: Option<Name>) -> (Option<String>, Option<String>) {
    match name {
        Some(Name { schema, name }) => (schema, Some(name)),
        None => (None, None),
    }
}

fn quoted(name: &Name) -> String {
    let quoted = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
    match &name.schema {
        Some(schema) => format!("{}.{}", quoted(schema), quoted(&name.name)),
        None => quoted(&name.name),
    }
}
