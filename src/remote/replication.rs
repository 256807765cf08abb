//! Replication connections: the only way to make a slot and export the snapshot
//! that fits it (`CREATE_REPLICATION_SLOT ... (SNAPSHOT 'export')`, manual
//! section "Streaming Replication Protocol").
//!
//! tokio-postgres has no setting for `replication=database`, so the startup
//! packet gets that parameter on its way out: into TLS, where the connection has it.
//! Everything else, authentication included, is tokio-postgres' own.
use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsStream};

use crate::error::{Error, Result};
use crate::remote::connection::{
    config, in_time, log_in, unreachable, Connection, Endpoint, Purpose, NO_ANSWER,
};
use crate::remote::socket::{self, Socket};
use crate::remote::tls;

/// Opens a session that speaks the replication commands of its database.
///
/// # Errors
/// As [`crate::remote::connect`].
pub async fn connect(endpoint: &Endpoint, purpose: Purpose) -> Result<Connection> {
    let config = config(endpoint, purpose)?;
    in_time(endpoint, &config, open(endpoint, &config)).await
}

/// Goes through the hosts as tokio-postgres does: the first one that takes the login, and writes
/// where `target_session_attrs` asks for that.
async fn open(endpoint: &Endpoint, config: &tokio_postgres::Config) -> Result<Connection> {
    let mut refused = Error::internal(format!("{endpoint} has no host"));
    for number in 0..config.get_hosts().len() {
        match open_at(endpoint, config, number).await {
            Ok(connection) => return Ok(connection),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

async fn open_at(
    endpoint: &Endpoint,
    config: &tokio_postgres::Config,
    number: usize,
) -> Result<Connection> {
    let label = &endpoint.to_string();
    let connector = &tls::connector(&endpoint.conninfo)?;
    let host = match config.get_hosts().get(number) {
        Some(Host::Tcp(name)) => name.as_str(),
        _ => "",
    };
    let (client, connection) = log_in(endpoint, |mode| async move {
        let mut connector = connector.clone();
        let tls = MakeTlsConnect::<StartupPatch<Socket>>::make_tls_connect(&mut connector, host)
            .map_err(tls::internal)?;
        let socket = socket::open(config, number)
            .await
            .map_err(|error| unreachable(label, &error.to_string(), NO_ANSWER))?;
        let mut config = config.clone();
        let stream = StartupPatch::new(socket);
        Ok(config.ssl_mode(mode).connect_raw(stream, tls::Replicating(tls)).await)
    })
    .await?;
    let driver = tokio::spawn(async move {
        drop(connection.await);
    });
    let connection = Connection::from_parts(client, label.clone(), driver);
    match is_wanted(config, &connection).await? {
        true => Ok(connection),
        false => Err(unreachable(
            label,
            "none of its hosts that answer takes writes, as target_session_attrs asks",
            "See which of them is the primary, and that it is named in the connection string.",
        )),
    }
}

async fn is_wanted(config: &tokio_postgres::Config, connection: &Connection) -> Result<bool> {
    if config.get_target_session_attrs() == TargetSessionAttrs::Any {
        return Ok(true);
    }
    let row = connection.text_row("SHOW transaction_read_only").await?;
    Ok(row.and_then(|row| row.into_iter().next().flatten()).as_deref() == Some("off"))
}

/// Adds `replication=database` to the startup packet, wherever that is written: to this
/// stream, or into the TLS that begins on it.
#[derive(Debug)]
pub struct StartupPatch<S> {
    stream: S,
    pending: Option<BytesMut>,
    started: bool,
}

/// Protocol version 3.0, as in src/include/libpq/pqcomm.h.
const PROTOCOL_3_0: u32 = 3 << 16;
/// `NEGOTIATE_SSL_CODE`, from there too.
const NEGOTIATE_SSL_CODE: u32 = 1234 << 16 | 5679;
/// The first byte of a TLS handshake (RFC 8446, section 5.1); no packet is as long.
const TLS_HANDSHAKE: u8 = 22;

/// Whether a message asks the server for TLS.
fn asks_for_tls(written: &[u8]) -> bool {
    written.get(..4) == Some(&8_u32.to_be_bytes())
        && written.get(4..) == Some(&NEGOTIATE_SSL_CODE.to_be_bytes())
}

/// The startup packet with one more parameter, once `written` holds all of it.
fn patch(written: &[u8]) -> Option<BytesMut> {
    let length = u32::from_be_bytes(written.get(..4)?.try_into().ok()?) as usize;
    let version = u32::from_be_bytes(written.get(4..8)?.try_into().ok()?);
    if written.len() != length || version != PROTOCOL_3_0 {
        return None;
    }
    // The packet ends with an empty name, after which nothing is read.
    let body = written.get(4..length - 1)?;
    let parameter = b"replication\0database\0\0";
    let total = u32::try_from(4 + body.len() + parameter.len()).ok()?;
    let mut out = BytesMut::with_capacity(total as usize);
    out.put_u32(total);
    out.put_slice(body);
    out.put_slice(parameter);
    Some(out)
}

impl<S> StartupPatch<S> {
    /// Nothing has been written to the stream.
    pub fn new(stream: S) -> Self {
        Self { stream, pending: None, started: false }
    }
}

impl<S: AsyncWrite + Unpin> StartupPatch<S> {
    fn poll_pending(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        while let Some(pending) = self.pending.as_mut() {
            if pending.is_empty() {
                self.pending = None;
                break;
            }
            let written = match Pin::new(&mut self.stream).poll_write(cx, pending) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            drop(pending.split_to(written));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StartupPatch<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StartupPatch<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.poll_pending(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
        // What is inside of TLS is another one's to patch.
        self.started |= buf.first() == Some(&TLS_HANDSHAKE);
        if self.started || asks_for_tls(buf) {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        let Some(packet) = patch(buf) else {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the first message is not a startup packet",
            )));
        };
        self.started = true;
        self.pending = Some(packet);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        match self.poll_pending(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_flush(cx),
            other => other,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for StartupPatch<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_startup_packet_gets_the_parameter() {
        let mut packet = BytesMut::new();
        let body = b"user\0me\0\0";
        packet.put_u32((8 + body.len()) as u32);
        packet.put_u32(PROTOCOL_3_0);
        packet.put_slice(body);
        let patched = patch(&packet).unwrap();
        assert_eq!(u32::from_be_bytes(patched[..4].try_into().unwrap()) as usize, patched.len());
        assert!(patched.ends_with(b"me\0replication\0database\0\0"));
    }

    #[test]
    fn what_asks_for_tls_is_known() {
        let mut packet = BytesMut::new();
        packet.put_u32(8);
        packet.put_u32(80_877_103);
        assert!(asks_for_tls(&packet) && patch(&packet).is_none());
        packet.put_u8(0);
        assert!(!asks_for_tls(&packet));
    }

    #[test]
    fn half_a_packet_is_not_patched() {
        assert!(patch(&[0, 0, 0, 20, 0, 3, 0, 0]).is_none());
        assert!(patch(&[]).is_none());
    }
}
