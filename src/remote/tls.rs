//! TLS, as libpq does it (manual, section "SSL Support"): with the library that the server
//! itself uses, so that both sides of a migration judge certificates alike.
use std::cell::RefCell;
use std::fmt::Display;
use std::fs;
use std::future::Future;
use std::pin::Pin;

use futures::TryFutureExt;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    SslConnector, SslConnectorBuilder, SslFiletype, SslMethod, SslVerifyMode, SslVersion,
};
use openssl::x509::store::{X509Lookup, X509StoreBuilder};
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::X509;
use postgres_openssl::{set_postgresql_alpn, MakeTlsConnector, TlsConnector, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

use crate::error::{Error, Result};
use crate::remote::conninfo::Conninfo;
use crate::remote::replication::StartupPatch;

/// What `sslmode` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Disable,
    /// `allow` too: what differs is only which of both is tried first.
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// The modes of connecting, in the order in which they are tried.
///
/// # Errors
/// 22023 for an unknown `sslmode`.
pub fn attempts(conninfo: &Conninfo) -> Result<&'static [SslMode]> {
    Ok(match mode(conninfo)? {
        Mode::Disable => &[SslMode::Disable],
        Mode::Prefer => &[SslMode::Prefer, SslMode::Disable],
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => &[SslMode::Require],
    })
}

fn mode(conninfo: &Conninfo) -> Result<Mode> {
    // There is no TLS on a socket of the file system.
    if conninfo.get("host").is_some_and(|host| host.starts_with(['/', '@'])) {
        return Ok(Mode::Disable);
    }
    let mode = match conninfo.get("sslmode") {
        Some("disable") => Mode::Disable,
        None | Some("" | "allow" | "prefer") => Mode::Prefer,
        Some("require") => Mode::Require,
        Some("verify-ca") => Mode::VerifyCa,
        Some("verify-full") => Mode::VerifyFull,
        Some(other) => {
            return Err(bad(format!("There is no sslmode \"{other}\"."))
                .hint("Modes are disable, allow, prefer, require, verify-ca and verify-full."))
        }
    };
    if conninfo.get("sslnegotiation") == Some("direct") && mode < Mode::Require {
        return Err(bad("sslnegotiation=direct needs sslmode require or above."));
    }
    let root = root(conninfo);
    match (mode, root) {
        (Mode::VerifyCa | Mode::VerifyFull, None) => {
            Err(bad("The server's certificate can't be verified without a root certificate.")
                .hint("Add sslrootcert=/path/to/root.crt, a file on each server that connects."))
        }
        (mode, Some("system")) if mode != Mode::VerifyFull => {
            Err(bad("sslrootcert=system needs sslmode verify-full."))
        }
        // As in libpq, for the sake of those who relied on it before there was verify-ca.
        (Mode::Require, Some(_)) => Ok(Mode::VerifyCa),
        (mode, _) => Ok(mode),
    }
}

fn root(conninfo: &Conninfo) -> Option<&str> {
    conninfo.get("sslrootcert").filter(|file| !file.is_empty())
}

/// What makes connections with TLS, or would if the server had it.
///
/// OpenSSL reads all certificates of the operating system for each connector, which takes
/// longer than to connect: where no file of the user's is to be looked at, one is made once a
/// process, and only when a server has TLS.
#[derive(Clone)]
pub enum Connector {
    /// One of the connection string's own.
    Own(MakeTlsConnector),
    /// One that verifies nothing, made when it is needed.
    Shared(Versions),
}

/// The versions of TLS that may be spoken, and whether the server is told its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    min: SslVersion,
    max: Option<SslVersion>,
    names_server: bool,
}

thread_local! {
    static SHARED: RefCell<Vec<(Versions, MakeTlsConnector)>> = const { RefCell::new(Vec::new()) };
}

/// What makes connections with TLS.
///
/// # Errors
/// 22023 with the keyword whose value can't be used.
pub fn connector(conninfo: &Conninfo) -> Result<Connector> {
    let versions = Versions {
        min: version(conninfo, "ssl_min_protocol_version")?.unwrap_or(SslVersion::TLS1_2),
        max: version(conninfo, "ssl_max_protocol_version")?,
        names_server: conninfo.get("sslsni") != Some("0"),
    };
    let has_key = conninfo.get("sslcert").or(conninfo.get("sslkey")).is_some();
    let sends_key = has_key && conninfo.get("sslcertmode") != Some("disable");
    Ok(match mode(conninfo)? {
        mode if mode < Mode::VerifyCa && !sends_key => Connector::Shared(versions),
        mode => Connector::Own(own(conninfo, mode, versions)?),
    })
}

impl Connector {
    /// For one connection.
    fn for_host(&self, host: &str) -> std::result::Result<TlsConnector, ErrorStack> {
        let mut make = match self {
            Self::Own(make) => make.clone(),
            Self::Shared(versions) => shared(*versions)?,
        };
        // Of any kind of stream: it is not known yet.
        MakeTlsConnect::<tokio::net::TcpStream>::make_tls_connect(&mut make, host)
    }
}

fn shared(versions: Versions) -> std::result::Result<MakeTlsConnector, ErrorStack> {
    let known = SHARED.with_borrow(|all| {
        all.iter().find(|(of, _)| *of == versions).map(|(_, connector)| connector.clone())
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let mut builder = builder(versions)?;
    builder.set_verify(SslVerifyMode::NONE);
    let made = made(builder, Mode::Prefer, versions);
    SHARED.with_borrow_mut(|all| all.push((versions, made.clone())));
    Ok(made)
}

fn builder(versions: Versions) -> std::result::Result<SslConnectorBuilder, ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    set_postgresql_alpn(&mut builder)?;
    builder.set_min_proto_version(Some(versions.min))?;
    builder.set_max_proto_version(versions.max)?;
    Ok(builder)
}

fn own(conninfo: &Conninfo, mode: Mode, versions: Versions) -> Result<MakeTlsConnector> {
    let mut builder = builder(versions).map_err(internal)?;
    if mode < Mode::VerifyCa {
        builder.set_verify(SslVerifyMode::NONE);
    } else if root(conninfo) != Some("system") {
        builder.set_cert_store(trusted(conninfo)?.build());
    }
    if conninfo.get("sslcertmode") != Some("disable") {
        match (conninfo.get("sslcert"), conninfo.get("sslkey")) {
            (Some(cert), Some(key)) => {
                let said = |e| unusable("sslcert", cert, &e);
                builder.set_certificate_chain_file(cert).map_err(said)?;
                let private = private_key(key)?;
                builder.set_private_key(&private).map_err(internal)?;
                builder.check_private_key().map_err(|e| unusable("sslkey", key, &e))?;
            }
            (None, None) => {}
            _ => return Err(bad("\"sslcert\" and \"sslkey\" belong together.")),
        }
    }
    Ok(made(builder, mode, versions))
}

fn made(builder: SslConnectorBuilder, mode: Mode, versions: Versions) -> MakeTlsConnector {
    let mut connector = MakeTlsConnector::new(builder.build());
    connector.set_callback(move |connection, _| {
        connection.set_verify_hostname(mode == Mode::VerifyFull);
        connection.set_use_server_name_indication(versions.names_server);
        Ok(())
    });
    connector
}

/// A key without a passphrase. Without the callback OpenSSL would ask for one at the terminal
/// of the server.
fn private_key(file: &str) -> Result<PKey<Private>> {
    let pem = fs::read(file).map_err(|e| unusable("sslkey", file, &e))?;
    PKey::private_key_from_pem_callback(&pem, |_| Ok(0))
        .map_err(|_| unusable("sslkey", file, &"it is no key in PEM form, or has a passphrase"))
}

/// The certificates of `sslrootcert`, and no others, with the lists of revoked ones.
fn trusted(conninfo: &Conninfo) -> Result<X509StoreBuilder> {
    let file = root(conninfo).unwrap_or_default();
    let pem = fs::read(file).map_err(|e| unusable("sslrootcert", file, &e))?;
    let certificates = X509::stack_from_pem(&pem).map_err(|e| unusable("sslrootcert", file, &e))?;
    if certificates.is_empty() {
        return Err(unusable("sslrootcert", file, &"it holds no certificate"));
    }
    let mut store = X509StoreBuilder::new().map_err(internal)?;
    for certificate in certificates {
        store.add_cert(certificate).map_err(internal)?;
    }
    let revoked = conninfo.get("sslcrl").filter(|file| !file.is_empty());
    let folder = conninfo.get("sslcrldir").filter(|folder| !folder.is_empty());
    if let Some(file) = revoked {
        let lookup = store.add_lookup(X509Lookup::file()).map_err(internal)?;
        lookup.load_crl_file(file, SslFiletype::PEM).map_err(|e| unusable("sslcrl", file, &e))?;
    }
    if let Some(folder) = folder {
        let lookup = store.add_lookup(X509Lookup::hash_dir()).map_err(internal)?;
        lookup.add_dir(folder, SslFiletype::PEM).map_err(|e| unusable("sslcrldir", folder, &e))?;
    }
    if revoked.or(folder).is_some() {
        let all = X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL;
        store.set_flags(all).map_err(internal)?;
    }
    Ok(store)
}

fn version(conninfo: &Conninfo, keyword: &str) -> Result<Option<SslVersion>> {
    Ok(match conninfo.get(keyword) {
        None | Some("") => None,
        Some("TLSv1") => Some(SslVersion::TLS1),
        Some("TLSv1.1") => Some(SslVersion::TLS1_1),
        Some("TLSv1.2") => Some(SslVersion::TLS1_2),
        Some("TLSv1.3") => Some(SslVersion::TLS1_3),
        Some(other) => return Err(bad(format!("\"{keyword}\" knows no version \"{other}\"."))),
    })
}

fn bad(detail: impl Into<String>) -> Error {
    Error::argument("invalid connection string").detail(detail)
}

fn unusable(keyword: &str, file: &str, cause: &dyn Display) -> Error {
    bad(format!("\"{keyword}\" names \"{file}\", which can't be used: {cause}."))
        .hint("The operating system's user of each server that connects must be able to read it.")
}

/// The error of a library that can't work at all.
pub fn internal(error: ErrorStack) -> Error {
    Error::internal(format!("TLS could not be set up: {error}"))
}

impl<S> MakeTlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = TlsStream<S>;
    type TlsConnect = Handshake;
    type Error = ErrorStack;

    fn make_tls_connect(&mut self, host: &str) -> std::result::Result<Handshake, ErrorStack> {
        Ok(Handshake { connector: self.clone(), host: host.to_owned() })
    }
}

/// Begins TLS on one connection, once the server has said that it has it.
pub struct Handshake {
    connector: Connector,
    host: String,
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = TlsStream<S>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future =
        Pin<Box<dyn Future<Output = std::result::Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        match self.connector.for_host(&self.host) {
            Ok(connector) => Box::pin(connector.connect(stream).map_err(Into::into)),
            Err(error) => Box::pin(std::future::ready(Err(error.into()))),
        }
    }
}

/// Makes connections whose startup packet, sent inside of TLS, asks for replication.
pub struct Replicating(pub Handshake);

impl<S> TlsConnect<S> for Replicating
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = StartupPatch<TlsStream<S>>;
    type Error = <Handshake as TlsConnect<S>>::Error;
    type Future =
        Pin<Box<dyn Future<Output = std::result::Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(self.0.connect(stream).map_ok(StartupPatch::new))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tried(text: &str) -> Result<&'static [SslMode]> {
        attempts(&Conninfo::parse(text)?)
    }

    #[test]
    fn modes_are_those_of_libpq() {
        let both = [SslMode::Prefer, SslMode::Disable];
        assert_eq!(tried("host=h").unwrap(), both);
        assert_eq!(tried("host=h sslmode=allow").unwrap(), both);
        assert_eq!(tried("host=h sslmode=disable").unwrap(), [SslMode::Disable]);
        assert_eq!(tried("host=/tmp sslmode=require").unwrap(), [SslMode::Disable]);
        for mode in ["require", "verify-ca", "verify-full"] {
            let text = format!("host=h sslmode={mode} sslrootcert=/root.crt");
            assert_eq!(tried(&text).unwrap(), [SslMode::Require]);
        }
        let asked = Conninfo::parse("host=h sslmode=require sslrootcert=/root.crt").unwrap();
        assert_eq!(mode(&asked).unwrap(), Mode::VerifyCa);
    }

    #[test]
    fn what_would_verify_nothing_is_refused() {
        for text in [
            "host=h sslmode=verify-full",
            "host=h sslmode=verify-ca sslrootcert=''",
            "host=h sslmode=require sslrootcert=system",
            "host=h sslmode=Require",
            "host=h sslnegotiation=direct",
        ] {
            assert_eq!(tried(text).unwrap_err().sqlstate(), "22023", "{text}");
        }
    }

    #[test]
    fn a_key_with_a_passphrase_is_refused_and_not_asked_for() {
        let key = openssl::rsa::Rsa::generate(2048).unwrap();
        let cipher = openssl::symm::Cipher::aes_256_cbc();
        let file = std::env::temp_dir().join(format!("reshard-key-{}", std::process::id()));
        fs::write(&file, key.private_key_to_pem_passphrase(cipher, b"secret").unwrap()).unwrap();
        let refused = private_key(file.to_str().unwrap()).unwrap_err();
        fs::write(&file, key.private_key_to_pem().unwrap()).unwrap();
        let taken = private_key(file.to_str().unwrap());
        fs::remove_file(&file).unwrap();
        assert!(refused.detail.unwrap().contains("passphrase"));
        assert!(taken.is_ok());
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        for text in [
            "host=h sslmode=verify-ca sslrootcert=/none/root.crt",
            "host=h sslcert=/none/c sslkey=/none/k",
        ] {
            let error = connector(&Conninfo::parse(text).unwrap()).err().unwrap();
            assert_eq!(error.sqlstate(), "22023");
            assert!(error.detail.unwrap().contains("/none/"));
        }
        assert!(connector(&Conninfo::parse("host=h sslcert=/c").unwrap()).is_err());
        assert!(connector(&Conninfo::parse("host=h").unwrap()).is_ok());
    }
}
