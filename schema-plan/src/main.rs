//! The program `reshard-schema`: a dump on stdin, a plan on stdout.

use reshard_schema::{plan, to_script, Options, Plan};
use std::io::{self, BufWriter, Read, Write};
use std::process::ExitCode;

const USAGE: &str = "\
reshard-schema sorts the statements of a schema dump into the phases of a
resharding run.

Usage:
  pg_dump --schema-only DATABASE | reshard-schema [OPTION]...

Options:
  --format json|text    json (default) for the coordinator, text for people:
                        an SQL script in the order of execution
  --with-publications   take the user's publications along
  --no-owner            leave out ownership
  --no-privileges       leave out privileges (GRANT, REVOKE, default privileges)
  -V, --version         show the version, then exit
  -?, --help            show this help, then exit

It reads dumps of PostgreSQL 15 to 18 in plain format and writes nothing if
there is a statement that it doesn't know. Exit status: 0 if planned, 1 if the
dump can't be planned, 2 if the options are wrong.
";

enum Format {
    Json,
    Text,
}

enum Command {
    Show(String),
    Plan(Format, Options),
}

fn main() -> ExitCode {
    let command = match command_of(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(message) => {
            report(&format!("{message}\nTry \"reshard-schema --help\"."));
            return ExitCode::from(2);
        }
    };
    let outcome = match command {
        Command::Show(text) => io::stdout().write_all(text.as_bytes()).map_err(|e| e.to_string()),
        Command::Plan(format, options) => run(format, options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            report(&message);
            ExitCode::from(1)
        }
    }
}

/// Like eprintln, but a closed stderr isn't worth a panic.
fn report(message: &str) {
    let _ = writeln!(io::stderr(), "reshard-schema: {message}");
}

fn command_of(mut args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut format = Format::Json;
    let mut options = Options::default();
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        match (name, value) {
            ("--format", value) => {
                format = match value.or_else(|| args.next()).as_deref() {
                    Some("json") => Format::Json,
                    Some("text") => Format::Text,
                    Some(other) => return Err(format!("unknown format \"{other}\"")),
                    None => return Err("option \"--format\" needs a value".to_owned()),
                }
            }
            ("--with-publications", None) => options.with_publications = true,
            ("--no-owner", None) => options.no_owner = true,
            ("--no-privileges", None) => options.no_privileges = true,
            ("--help" | "-?" | "-h", None) => return Ok(Command::Show(USAGE.to_owned())),
            ("--version" | "-V", None) => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Command::Show(format!("reshard-schema {version}\n")));
            }
            _ => return Err(format!("unknown option \"{arg}\"")),
        }
    }
    Ok(Command::Plan(format, options))
}

fn run(format: Format, options: Options) -> Result<(), String> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot read the dump: {error}"))?;
    let dump = String::from_utf8(bytes).map_err(|error| {
        let line = 1 + count_lines(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        format!("the dump isn't UTF-8 at line {line}; use pg_dump --encoding=UTF8")
    })?;
    let plan = plan(&dump, options).map_err(|error| error.to_string())?;
    drop(dump);
    write(&plan, format).map_err(|error| format!("cannot write the plan: {error}"))
}

fn count_lines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

fn write(plan: &Plan, format: Format) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, plan)?;
            writeln!(out)?;
        }
        Format::Text => {
            let mut script = String::new();
            to_script(plan, &mut script).map_err(io::Error::other)?;
            out.write_all(script.as_bytes())?;
        }
    }
    out.flush()
}
