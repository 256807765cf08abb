//! What can't be planned is refused, with its line and its text.
#![allow(clippy::unwrap_used)]

use reshard_schema::{plan, Options, PlanError};

fn refused(dump: &str) -> PlanError {
    plan(dump, Options::default()).unwrap_err()
}

#[test]
fn unknown_statements_are_quoted() {
    for (sql, what) in [
        ("DROP TABLE public.t", "DropStmt"),
        ("VACUUM public.t", "VacuumStmt"),
        ("DO $$ BEGIN END $$", "DoStmt"),
        ("SELECT public.f()", "function f"),
        ("SELECT 1", "no function call"),
        ("ALTER TABLE public.t DROP COLUMN a", "ALTER TABLE AtDropColumn"),
        ("ALTER TABLE public.t ADD COLUMN a integer", "ALTER TABLE AtAddColumn"),
        (
            "ALTER TABLE public.t ALTER COLUMN a SET STATISTICS 1, ALTER COLUMN b SET STATISTICS 2",
            "ALTER TABLE with several commands",
        ),
        ("ALTER DOMAIN public.d DROP CONSTRAINT c", "ALTER DOMAIN subtype \"X\""),
        ("GRANT SELECT ON TABLE public.a, public.b TO bob", "grant on several objects"),
    ] {
        let error = refused(&format!("SET x.y = 1;\n\n{sql};\n"));
        let expected = PlanError::Unknown { line: 3, what: what.to_owned(), quote: sql.to_owned() };
        assert_eq!(error, expected);
        let message = error.to_string();
        assert!(message.starts_with("unknown kind of statement at line 3"), "{message}");
        assert!(message.ends_with(sql), "{message}");
    }
}

#[test]
fn data_is_refused() {
    for sql in [
        "COPY public.t (a) FROM stdin",
        "INSERT INTO public.t VALUES (1)",
        "SELECT pg_catalog.setval('public.s', 1, true)",
        "CREATE TABLE public.t AS SELECT 1",
    ] {
        let error = refused(&format!("{sql};\n"));
        assert!(matches!(error, PlanError::HoldsData { line: 1, .. }), "{error}");
    }
}

#[test]
fn what_does_not_parse_is_refused() {
    let error =
        refused("CREATE TABLE public.ok (a integer);\nCREATE TABEL public.t (a integer);\n");
    assert!(
        matches!(&error, PlanError::Parse { line: 2, quote, .. } if quote.starts_with("CREATE TABEL"))
    );
    assert!(matches!(
        refused("CREATE TABLE public.t (a text DEFAULT 'x);\n"),
        PlanError::Unterminated { .. }
    ));
    assert!(matches!(
        refused("CREATE TABLE public.t (a text)"),
        PlanError::Unterminated { what: "statement", .. }
    ));
    assert!(matches!(refused("\\i other.sql\n"), PlanError::UnknownCommand { line: 1, .. }));
}

#[test]
fn backslashes_are_read_as_the_dump_says() {
    let dump = "SET standard_conforming_strings = off;\nCREATE TABLE public.t (a text DEFAULT 'it\\'s; x');\n";
    let plan = plan(dump, Options::default()).unwrap();
    assert_eq!(plan.statements.len(), 1);
    assert!(plan.statements[0].sql.ends_with("'it\\'s; x')"));
}

#[test]
fn an_empty_dump_is_an_empty_plan() {
    let plan = plan("--\n-- PostgreSQL database dump\n--\n\n", Options::default()).unwrap();
    assert_eq!((plan.statements.len(), plan.server_version), (0, None));
}

#[test]
fn nested_expressions_may_be_deep() {
    let depth = 2000;
    let (open, terms) = ("(".repeat(depth), "a) || ".repeat(depth));
    let view = format!("CREATE VIEW public.v AS SELECT {open}{terms}a FROM public.t;");
    assert_eq!(plan(&view, Options::default()).unwrap().statements.len(), 1);
}
