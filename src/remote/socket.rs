//! Sockets that tokio-postgres is handed: opened as its own are (`connect_socket` there).
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

/// PostgreSQL's, where a connection string has none.
const DEFAULT_PORT: u16 = 5432;

/// Either kind of socket.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Opens a socket to the host with this number, counted from 0, with the limits of `config`.
///
/// # Errors
/// Those of the operating system; `TimedOut` after the configuration's `connect_timeout`.
pub async fn open(config: &tokio_postgres::Config, number: usize) -> io::Result<Socket> {
    let opening = connect(config, number);
    match config.get_connect_timeout() {
        Some(limit) => tokio::time::timeout(*limit, opening).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out"))
        }),
        None => opening.await,
    }
}

async fn connect(config: &tokio_postgres::Config, number: usize) -> io::Result<Socket> {
    let ports = config.get_ports();
    let port = ports.get(number).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
    let stream = match (config.get_hostaddrs().get(number), config.get_hosts().get(number)) {
        (Some(address), _) => TcpStream::connect((*address, port)).await?,
        (None, Some(Host::Tcp(name))) => TcpStream::connect((name.as_str(), port)).await?,
        (None, Some(Host::Unix(folder))) => {
            let socket = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await?;
            return Ok(Socket::Unix(socket));
        }
        (None, None) => return Err(io::Error::new(io::ErrorKind::NotFound, "no such host")),
    };
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_user_timeout(config.get_tcp_user_timeout().copied())?;
    if config.get_keepalives() {
        socket.set_tcp_keepalive(&keepalive(config))?;
    }
    Ok(Socket::Tcp(stream))
}

fn keepalive(config: &tokio_postgres::Config) -> TcpKeepalive {
    let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
    if let Some(interval) = config.get_keepalives_interval() {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        keepalive = keepalive.with_retries(retries);
    }
    keepalive
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
