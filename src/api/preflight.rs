//! What would stop or spoil a run, found before anything is touched.
use pgrx::iter::TableIterator;
use pgrx::prelude::*;
use pgrx::JsonB;

use crate::api::admin;
use crate::api::argument::given;
use crate::error::Result;
use crate::pg::report::or_raise;
use crate::preflight::{self, Verb};
use crate::state::cluster;
use crate::state::options::Options;

/// All findings about a run from `source` to `destination`.
///
/// # Errors
/// 42704 for an unknown cluster; 08001 where a server can't be reached.
#[allow(clippy::type_complexity)]
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_preflight(
    source: Option<&str>,
    destination: Option<&str>,
    publication: Option<&str>,
    options: default!(Option<JsonB>, "'{}'"),
) -> TableIterator<
    'static,
    (
        name!(check_name, String),
        name!(object, Option<String>),
        name!(severity, String),
        name!(detail, String),
        name!(hint, Option<String>),
    ),
> {
    let (source, destination) = (given(source, "source"), given(destination, "destination"));
    let publication = given(publication, "publication");
    let options = given(options, "options");
    let findings = or_raise(admin::require().and_then(|()| {
        let options = Options::from_user(options.0)?;
        let (source, destination) = (cluster::load(source)?, cluster::load(destination)?);
        let report = preflight::check(Verb::Start, &source, &destination, publication, &options)?;
        Ok(report.findings)
    }));
    TableIterator::new(findings.into_iter().map(|f| {
        (f.check_name.to_owned(), f.object, f.severity.as_str().to_owned(), f.detail, f.hint)
    }))
}

/// Refuses a run that preflight finds an error in. Returns the run's options with
/// what preflight has to say about them.
///
/// # Errors
/// That of the first finding, with the others in its detail.
pub(super) fn refuse(
    verb: Verb,
    source: &str,
    destination: &str,
    publication: &str,
    options: Options,
) -> Result<Options> {
    let (source, destination) = (cluster::load(source)?, cluster::load(destination)?);
    let report = preflight::check(verb, &source, &destination, publication, &options)?;
    for finding in report.findings.iter().filter(|f| f.severity == preflight::Severity::Warning) {
        warning!("{}", finding.detail);
    }
    match preflight::first_error(&report.findings) {
        Some(error) => Err(error),
        None => Ok(Options {
            unfit_foreign_keys: report.unfit_foreign_keys,
            node: report.node.0,
            staying: report.staying,
            ..options
        }),
    }
}
