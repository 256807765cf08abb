//! The order of a plan where pg_dump had to bend its own.
#![allow(clippy::unwrap_used)]

use reshard_schema::{plan, Options, Step};

/// What pg_dump makes of functions that need a primary key.
const LATE_FUNCTION: &str = "\
CREATE TABLE public.orders (id integer NOT NULL, name text);
ALTER TABLE ONLY public.orders ADD CONSTRAINT orders_pkey PRIMARY KEY (id);
CREATE FUNCTION public.ord(integer) RETURNS bigint LANGUAGE sql IMMUTABLE
    BEGIN ATOMIC
 SELECT count(*) FROM (SELECT o.id, o.name FROM public.orders o GROUP BY o.id) s WHERE s.id = $1;
END;
ALTER FUNCTION public.ord(integer) OWNER TO bob;
";

fn steps(dump: &str) -> Vec<(Step, String)> {
    let plan = plan(dump, Options::default()).unwrap();
    let names = plan.statements.into_iter();
    names.map(|s| (s.step, format!("{} {}", s.kind, s.object_name.unwrap()))).collect()
}

fn step_of(steps: &[(Step, String)], name: &str) -> Step {
    steps.iter().find(|(_, other)| other == name).unwrap().0
}

#[test]
fn a_table_that_needs_a_late_function_pulls_it_before_the_data() {
    let dump = format!(
        "{LATE_FUNCTION}\
         CREATE TABLE public.t (id integer, n bigint DEFAULT public.ord(1));\n\
         ALTER TABLE public.t OWNER TO bob;\n\
         ALTER TABLE ONLY public.t ADD CONSTRAINT t_pkey PRIMARY KEY (id);\n\
         CREATE INDEX t_ord ON public.t USING btree (public.ord(id));\n"
    );
    let expected = [
        (Step::Pre, "table orders"),
        (Step::Pre, "primary_key orders_pkey"),
        (Step::Pre, "function ord"),
        (Step::Pre, "owner ord"),
        (Step::Pre, "table t"),
        (Step::Pre, "owner t"),
        (Step::Keys, "primary_key t_pkey"),
        (Step::Indexes, "index t_ord"),
    ];
    assert_eq!(steps(&dump), expected.map(|(step, name)| (step, name.to_owned())));
}

#[test]
fn only_expressions_can_need_a_late_function() {
    let dump = format!(
        "{LATE_FUNCTION}\
         CREATE UNIQUE INDEX orders_name ON public.orders USING btree (name);\n\
         CREATE INDEX orders_where ON public.orders USING btree (name) WHERE (public.ord(id) > 1);\n\
         CREATE INDEX orders_ord ON public.orders USING btree (public.ord(id));\n\
         COMMENT ON INDEX public.orders_ord IS 'late';\n"
    );
    let steps = steps(&dump);
    assert_eq!(step_of(&steps, "primary_key orders_pkey"), Step::Keys);
    assert_eq!(step_of(&steps, "index orders_name"), Step::Indexes);
    assert_eq!(step_of(&steps, "function ord"), Step::Rest);
    assert_eq!(step_of(&steps, "index orders_where"), Step::Rest);
    assert_eq!(step_of(&steps, "index orders_ord"), Step::Rest);
    assert_eq!(step_of(&steps, "comment orders_ord"), Step::Rest);
}

#[test]
fn an_index_is_attached_after_both_sides_are_there() {
    let dump = format!(
        "{LATE_FUNCTION}\
         CREATE INDEX parent ON ONLY public.ord_all USING btree (((id + 1)));\n\
         CREATE INDEX child ON part.one USING btree (((id + 1)));\n\
         ALTER INDEX public.parent ATTACH PARTITION part.child;\n"
    );
    let steps = steps(&dump);
    // The name of the late function is in the parent's text by chance.
    assert_eq!(step_of(&steps, "index parent"), Step::Rest);
    assert_eq!(step_of(&steps, "index child"), Step::Indexes);
    assert_eq!(step_of(&steps, "index_attach parent"), Step::Rest);
}

#[test]
fn default_privileges_come_after_all_that_they_would_touch() {
    let steps = steps(
        "CREATE SCHEMA app;\n\
         ALTER DEFAULT PRIVILEGES FOR ROLE bob IN SCHEMA app GRANT SELECT ON TABLES TO eve;\n\
         CREATE TABLE app.t (a integer);\n\
         ALTER TABLE ONLY app.t REPLICA IDENTITY FULL;\n\
         ALTER TABLE ONLY app.t FORCE ROW LEVEL SECURITY;\n\
         CREATE TABLE app.u (a integer);\n",
    );
    let expected = [
        (Step::Pre, "schema app"),
        (Step::Pre, "table t"),
        (Step::Pre, "table u"),
        (Step::Attach, "replica_identity t"),
        (Step::Rest, "default_privileges TABLES"),
        (Step::Rest, "row_security t"),
    ];
    assert_eq!(steps, expected.map(|(step, name)| (step, name.to_owned())));
}
