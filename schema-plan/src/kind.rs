//! The kinds of statements and objects that a plan names.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident => $text:literal,)*) => {
        /// What a statement makes or does. In JSON: the word that
        /// [`Kind::as_str`] gives, e.g. `primary_key`.
        ///
        /// New kinds may be added, so a reader needs a branch for the rest.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Kind {
            /// The word used in plans and in `reshard.schema_sync`.
            pub fn as_str(self) -> &'static str {
                match self { $(Kind::$variant => $text,)* }
            }
        }
    };
}

kinds! {
    /// `CREATE ACCESS METHOD`
    AccessMethod => "access_method",
    /// `CREATE AGGREGATE`
    Aggregate => "aggregate",
    /// `CREATE CAST`
    Cast => "cast",
    /// `ADD CONSTRAINT ... CHECK` outside of CREATE TABLE or CREATE DOMAIN
    Check => "check",
    /// `CLUSTER ON`
    Cluster => "cluster",
    /// `CREATE COLLATION`
    Collation => "collation",
    /// A column; only as what a comment, label or grant is about
    Column => "column",
    /// Statistics target, storage, compression and options of a column
    ColumnOption => "column_option",
    /// `COMMENT ON`
    Comment => "comment",
    /// A constraint; only as what a comment is about
    Constraint => "constraint",
    /// `CREATE CONVERSION`
    Conversion => "conversion",
    /// `CREATE DATABASE`, `ALTER DATABASE` and what belongs to it
    Database => "database",
    /// `ALTER COLUMN ... SET DEFAULT`
    Default => "default",
    /// `ALTER DEFAULT PRIVILEGES`
    DefaultPrivileges => "default_privileges",
    /// `CREATE DOMAIN`
    Domain => "domain",
    /// `CREATE EVENT TRIGGER` and its state
    EventTrigger => "event_trigger",
    /// `ADD CONSTRAINT ... EXCLUDE`
    Exclusion => "exclusion",
    /// `CREATE EXTENSION`
    Extension => "extension",
    /// `DEPENDS ON EXTENSION`
    ExtensionDependence => "extension_dependence",
    /// `CREATE FOREIGN DATA WRAPPER`
    ForeignDataWrapper => "foreign_data_wrapper",
    /// `ADD CONSTRAINT ... FOREIGN KEY`
    ForeignKey => "foreign_key",
    /// `CREATE SERVER`
    ForeignServer => "foreign_server",
    /// `CREATE FOREIGN TABLE`
    ForeignTable => "foreign_table",
    /// `CREATE FUNCTION`
    Function => "function",
    /// `GRANT` and `REVOKE`
    Grant => "grant",
    /// `ADD GENERATED ... AS IDENTITY`
    Identity => "identity",
    /// `CREATE INDEX`
    Index => "index",
    /// `ALTER INDEX ... ATTACH PARTITION`
    IndexAttach => "index_attach",
    /// `INHERIT`
    Inherit => "inherit",
    /// `CREATE LANGUAGE`
    Language => "language",
    /// Large objects
    LargeObject => "large_object",
    /// `CREATE MATERIALIZED VIEW`
    MaterializedView => "materialized_view",
    /// `ADD CONSTRAINT ... NOT NULL` outside of CREATE TABLE, `SET NOT NULL`
    NotNull => "not_null",
    /// `CREATE OPERATOR`
    Operator => "operator",
    /// `CREATE OPERATOR CLASS`
    OperatorClass => "operator_class",
    /// `CREATE OPERATOR FAMILY`
    OperatorFamily => "operator_family",
    /// `OWNER TO`
    Owner => "owner",
    /// A server parameter; only as what a grant is about
    Parameter => "parameter",
    /// `ALTER TABLE ... ATTACH PARTITION`
    Partition => "partition",
    /// `CREATE POLICY`
    Policy => "policy",
    /// `ADD CONSTRAINT ... PRIMARY KEY`
    PrimaryKey => "primary_key",
    /// `CREATE PROCEDURE`
    Procedure => "procedure",
    /// psql meta-commands such as `\restrict`
    PsqlCommand => "psql_command",
    /// `CREATE PUBLICATION` and `ALTER PUBLICATION ... ADD`
    Publication => "publication",
    /// `REFRESH MATERIALIZED VIEW`, made by the planner
    Refresh => "refresh",
    /// `REPLICA IDENTITY`
    ReplicaIdentity => "replica_identity",
    /// A role
    Role => "role",
    /// `ENABLE` and `FORCE ROW LEVEL SECURITY`
    RowSecurity => "row_security",
    /// `CREATE RULE` and its state
    Rule => "rule",
    /// `CREATE SCHEMA`
    Schema => "schema",
    /// `SECURITY LABEL`
    SecurityLabel => "security_label",
    /// `CREATE SEQUENCE`, `ALTER SEQUENCE ... OWNED BY`
    Sequence => "sequence",
    /// `CREATE STATISTICS`, `ALTER STATISTICS`
    Statistics => "statistics",
    /// Planner statistics that a dump carries (18 and newer)
    StatisticsData => "statistics_data",
    /// `CREATE SUBSCRIPTION`
    Subscription => "subscription",
    /// `CREATE TABLE`
    Table => "table",
    /// Access method, persistence and options of a table, set by ALTER TABLE
    TableOption => "table_option",
    /// A tablespace; only as what a grant or comment is about
    Tablespace => "tablespace",
    /// `CREATE` and `ALTER TEXT SEARCH CONFIGURATION`
    TextSearchConfiguration => "text_search_configuration",
    /// `CREATE TEXT SEARCH DICTIONARY`
    TextSearchDictionary => "text_search_dictionary",
    /// `CREATE TEXT SEARCH PARSER`
    TextSearchParser => "text_search_parser",
    /// `CREATE TEXT SEARCH TEMPLATE`
    TextSearchTemplate => "text_search_template",
    /// `CREATE TRANSFORM`
    Transform => "transform",
    /// `CREATE TRIGGER` and its state
    Trigger => "trigger",
    /// `CREATE TYPE` of all sorts
    Type => "type",
    /// `ADD CONSTRAINT ... UNIQUE`
    Unique => "unique",
    /// `CREATE USER MAPPING`
    UserMapping => "user_mapping",
    /// `VALIDATE CONSTRAINT` of a foreign key, made by the planner
    Validation => "validation",
    /// `CREATE VIEW`
    View => "view",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
