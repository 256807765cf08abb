//! Certificates for servers, made by openssl(1).

use std::path::PathBuf;
use std::process::Command;

use super::installation::run;
use super::rig::Rig;
use super::server::Server;
use crate::error::{Error, Result};

/// An authority that the servers of a rig get their certificates from.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// A new one, with a root certificate of its own.
    ///
    /// # Errors
    /// openssl's.
    pub fn new(rig: &Rig, name: &str) -> Result<Authority> {
        let folder = rig.folder().join(name);
        std::fs::create_dir(&folder)
            .map_err(Error::io(format!("make folder {}", folder.display())))?;
        rig.account().own(&folder)?;
        let authority = Authority { folder };
        authority.openssl(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=root",
            "-keyout", "root.key", "-out", "root.crt",
        ])?;
        Ok(authority)
    }

    /// The file that clients trust.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.crt")
    }

    /// Has a server take connections over TCP with TLS alone, under a certificate for its
    /// address, not for its name.
    ///
    /// # Errors
    /// openssl's and the server's.
    pub async fn secure(&self, rig: &Rig, server: &Server) -> Result<()> {
        let (key, request, certificate) = ("server.key", "server.csr", "server.crt");
        self.openssl(&[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=shard",
            "-keyout",
            key,
            "-out",
            request,
        ])?;
        let names = self.folder.join("names");
        std::fs::write(&names, "subjectAltName=IP:127.0.0.1").map_err(Error::io("write a file"))?;
        self.openssl(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-CA",
            "root.crt",
            "-CAkey",
            "root.key",
            "-CAcreateserial",
            "-extfile",
            "names",
            "-in",
            request,
            "-out",
            certificate,
        ])?;
        for file in [key, certificate] {
            let to = server.data().join(file);
            std::fs::rename(self.folder.join(file), &to).map_err(Error::io("move a file"))?;
            rig.account().own(&to)?;
        }
        let rules = server.data().join("pg_hba.conf");
        let before = std::fs::read_to_string(&rules).map_err(Error::io("read pg_hba.conf"))?;
        let plain = "hostnossl all all all reject\nhostnossl replication all all reject\n";
        std::fs::write(&rules, format!("{plain}{before}"))
            .map_err(Error::io("write pg_hba.conf"))?;
        server.set(&[("ssl", "on")])?;
        server.execute("SELECT pg_reload_conf()").await
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new("openssl").current_dir(&self.folder).args(arguments)).map(drop)
    }
}
