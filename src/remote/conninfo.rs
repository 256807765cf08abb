//! libpq connection strings: read once, kept as keywords, shown without secrets.
//!
//! Both forms of the manual (section "Connection Strings") are read:
//! `key=value` pairs and `postgresql://` URIs.
use std::collections::BTreeMap;
use std::fmt;

use tokio_postgres::config::TargetSessionAttrs;

use crate::error::{Error, Result};

/// Keywords that are passed to tokio-postgres; those of TLS are for
/// [`crate::remote::tls`], the others only travel in the connection string of subscriptions.
const CLIENT_KEYWORDS: &[&str] = &[
    "user",
    "password",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "options",
    "sslnegotiation",
    "channel_binding",
];

/// Keywords that libpq knows besides, of any version (`PQconninfoOptions` of
/// src/interfaces/libpq/fe-connect.c).
const LIBPQ_KEYWORDS: &[&str] = &[
    "application_name",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "replication",
    "require_auth",
    "requirepeer",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// Keywords that hold secrets which a declaration can't keep.
const UNKEPT_SECRETS: &[&str] =
    &["oauth_client_secret", "scram_client_key", "scram_server_key", "sslpassword"];

/// Keywords whose value must never be shown.
const SECRET_KEYWORDS: &[&str] = &["password", "sslpassword"];

/// Which of several hosts may be taken: shards are written to.
const SESSION_ATTRS: &[&str] = &["any", "read-write", "primary"];

/// Keywords that say where a database is.
const ADDRESS_KEYWORDS: &[&str] = &["host", "hostaddr", "port", "dbname"];

/// A connection string as keyword and value.
#[derive(Clone, PartialEq, Eq)]
pub struct Conninfo(BTreeMap<String, String>);

impl Conninfo {
    /// Reads a connection string.
    ///
    /// # Errors
    /// 22023 where it is no connection string.
    pub fn parse(text: &str) -> Result<Self> {
        let trimmed = text.trim();
        let map = if trimmed.starts_with("postgres://") || trimmed.starts_with("postgresql://") {
            parse_uri(trimmed)?
        } else {
            parse_pairs(trimmed)?
        };
        if map.contains_key("service") || map.contains_key("passfile") {
            return Err(Error::argument("connection string refers to a file of the client")
                .detail("Keywords \"service\" and \"passfile\" name files that other servers can't read.")
                .hint("Write host, port, dbname, user and password into the connection string."));
        }
        if let Some(keyword) = UNKEPT_SECRETS.iter().find(|k| map.contains_key(**k)) {
            return Err(Error::argument("connection string holds a secret besides the password")
                .detail(format!("Keyword \"{keyword}\" can't be kept secret."))
                .hint("Leave it out: a role logs in with a password, or with a key that has no passphrase."));
        }
        if let Some(attrs) = map.get("target_session_attrs") {
            if !SESSION_ATTRS.contains(&attrs.as_str()) {
                return Err(bad(format!(
                    "target_session_attrs is \"{attrs}\"; here it may be {}.",
                    SESSION_ATTRS.join(", ")
                )));
            }
        }
        let is_known = |key: &String| {
            [CLIENT_KEYWORDS, LIBPQ_KEYWORDS].iter().any(|k| k.contains(&key.as_str()))
        };
        if let Some(unknown) = map.keys().find(|key| !is_known(key)) {
            return Err(bad(format!(
                "There is no keyword \"{unknown}\"; keywords are lower-case."
            )));
        }
        Ok(Self(map))
    }

    /// The value of a keyword.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(String::as_str)
    }

    /// Without password, and the password apart: how a declaration is stored.
    pub fn split_secret(&self) -> (Conninfo, Option<String>) {
        let mut open = self.0.clone();
        let secret = open.remove("password");
        (Self(open), secret)
    }

    /// With this password.
    pub fn with_secret(mut self, password: Option<String>) -> Self {
        if let Some(password) = password {
            self.0.insert("password".to_owned(), password);
        }
        self
    }

    /// The whole string, secrets included, as libpq reads it: for
    /// `CREATE SUBSCRIPTION` alone.
    pub fn to_libpq(&self) -> String {
        render(self.0.iter())
    }

    /// The string that a person may see.
    pub fn redacted(&self) -> String {
        render(self.0.iter().filter(|(k, _)| !SECRET_KEYWORDS.contains(&k.as_str())))
    }

    /// Where the database is, and no more: for those who log in by their own name.
    pub fn address(&self) -> String {
        render(self.0.iter().filter(|(k, _)| ADDRESS_KEYWORDS.contains(&k.as_str())))
    }

    /// The configuration for tokio-postgres.
    ///
    /// # Errors
    /// 22023 where it lacks a host or holds a value that can't be read.
    pub fn to_config(&self) -> Result<tokio_postgres::Config> {
        let known = self.0.iter().filter(|(k, _)| CLIENT_KEYWORDS.contains(&k.as_str()));
        let text = render(known);
        let mut config = text.parse::<tokio_postgres::Config>().map_err(|error| {
            // The error's own text may quote a value; its source names the cause.
            let cause = std::error::Error::source(&error)
                .map_or_else(|| "unknown cause".to_owned(), ToString::to_string);
            bad(format!("Cause: {cause}."))
        })?;
        // tokio-postgres knows no "primary".
        if self.get("target_session_attrs").is_some_and(|attrs| attrs != "any") {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        Ok(config)
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

fn render<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    pairs
        .map(|(k, v)| {
            let plain = !v.is_empty()
                && v.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@,+*%~".contains(c));
            if plain {
                format!("{k}={v}")
            } else {
                format!("{k}='{}'", v.replace('\\', "\\\\").replace('\'', "\\'"))
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn bad(detail: impl Into<String>) -> Error {
    Error::argument("invalid connection string").detail(detail).hint(
        "A connection string looks like \"host=10.0.0.5 port=5432 dbname=app user=reshard password=...\".",
    )
}

/// `conninfo_parse` of src/interfaces/libpq/fe-connect.c.
fn parse_pairs(text: &str) -> Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Some(eq) = rest.find('=') else {
            return Err(bad("A keyword is not followed by \"=\"."));
        };
        let key = rest[..eq].trim().to_owned();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(bad("A keyword is not followed by \"=\"."));
        }
        rest = rest[eq + 1..].trim_start();
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let quoted = rest.starts_with('\'');
        if quoted {
            chars.next();
        }
        let mut end = None;
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => {
                    if let Some((_, next)) = chars.next() {
                        value.push(next);
                    }
                }
                '\'' if quoted => {
                    end = Some(at + 1);
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = Some(at);
                    break;
                }
                c => value.push(c),
            }
        }
        let end = match (end, quoted) {
            (Some(end), _) => end,
            (None, false) => rest.len(),
            (None, true) => {
                return Err(bad(format!("The value of \"{key}\" has no closing quote.")))
            }
        };
        map.insert(key, value);
        rest = rest[end..].trim_start();
    }
    Ok(map)
}

/// `conninfo_uri_parse` of src/interfaces/libpq/fe-connect.c, without its lists of hosts.
fn parse_uri(text: &str) -> Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if let Some(user) = user {
        let (user, password) = match user.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (user, None),
        };
        map.insert("user".to_owned(), percent_decode(user)?);
        if let Some(password) = password {
            map.insert("password".to_owned(), percent_decode(password)?);
        }
    }
    let (host, port) = if let Some(bracketed) = host.strip_prefix('[') {
        let (host, after) = bracketed
            .split_once(']')
            .ok_or_else(|| bad("An IPv6 address has no closing bracket."))?;
        (host, after.strip_prefix(':'))
    } else {
        match host.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        }
    };
    for (key, value) in [("host", Some(host)), ("port", port), ("dbname", Some(dbname))] {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            map.insert(key.to_owned(), percent_decode(value)?);
        }
    }
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| bad("A parameter of the URI has no value."))?;
        map.insert(percent_decode(key)?, percent_decode(value)?);
    }
    Ok(map)
}

fn percent_decode(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digits = [bytes.next(), bytes.next()];
        let value = match digits {
            [Some(h), Some(l)] => {
                char::from(h).to_digit(16).zip(char::from(l).to_digit(16)).map(|(h, l)| h * 16 + l)
            }
            _ => None,
        };
        match value.and_then(|v| u8::try_from(v).ok()) {
            Some(value) if value != 0 => out.push(value),
            _ => return Err(bad("The URI holds an invalid percent-encoded value.")),
        }
    }
    String::from_utf8(out).map_err(|_| bad("The URI holds a value that is not UTF-8."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pairs_follow_libpq() {
        let c = Conninfo::parse("host=h port = 5433 password='it\\'s  me' user=a\\ b").unwrap();
        assert_eq!(c.get("port"), Some("5433"));
        assert_eq!(c.get("password"), Some("it's  me"));
        assert_eq!(c.get("user"), Some("a b"));
        assert_eq!(Conninfo::parse(&c.to_libpq()).unwrap(), c);
    }

    #[test]
    fn of_several_hosts_one_that_writes_may_be_asked_for() {
        for (attrs, wanted) in [
            ("any", TargetSessionAttrs::Any),
            ("read-write", TargetSessionAttrs::ReadWrite),
            ("primary", TargetSessionAttrs::ReadWrite),
        ] {
            let c = Conninfo::parse(&format!("host=a,b target_session_attrs={attrs}")).unwrap();
            assert_eq!(c.to_config().unwrap().get_target_session_attrs(), wanted);
            assert!(c.to_libpq().contains(attrs));
        }
        let error = Conninfo::parse("host=a,b target_session_attrs=standby").unwrap_err();
        assert_eq!(error.sqlstate(), "22023");
    }

    #[test]
    fn uris_are_read() {
        let c = Conninfo::parse("postgresql://me:p%40ss@[::1]:6000/db?sslmode=disable").unwrap();
        assert_eq!(c.get("password"), Some("p@ss"));
        assert_eq!(c.get("host"), Some("::1"));
        assert_eq!(c.get("port"), Some("6000"));
        assert_eq!(c.get("dbname"), Some("db"));
        assert_eq!(c.get("sslmode"), Some("disable"));
    }

    #[test]
    fn keywords_that_libpq_does_not_know_are_refused() {
        for text in ["host=h pasword=hunter2", "host=h Password=hunter2", "postgresql://h/?pw=x"] {
            let error = Conninfo::parse(text).unwrap_err();
            assert_eq!(error.sqlstate(), "22023");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
        assert!(Conninfo::parse("host=h connect_timeout=3 keepalives=0").is_ok());
    }

    #[test]
    fn secrets_are_not_shown() {
        let c = Conninfo::parse("host=h password=hunter2").unwrap();
        assert!(!format!("{c:?}").contains("hunter2"));
        let whole = Conninfo::parse("host=h port=5 dbname=d user=u password=hunter2").unwrap();
        assert_eq!(whole.address(), "dbname=d host=h port=5");
        let (open, secret) = c.split_secret();
        assert!(!open.to_libpq().contains("hunter2"));
        assert_eq!(open.with_secret(secret), c);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Conninfo::parse("nonsense").is_err());
        assert!(Conninfo::parse("host='x").is_err());
        assert!(Conninfo::parse("service=x").is_err());
        assert!(Conninfo::parse("postgres://h/d?x=%zz").is_err());
    }
}
