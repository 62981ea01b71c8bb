//! TLS: a certificate and its key, read from files, and the beginning of a connection that goes by
//! them.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Longest time in which a connection must have become one of TLS: who is slower holds a place for
/// no longer.
pub(super) const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// How every connection of TLS begins.
const HANDSHAKE: u8 = 0x16;

/// What is answered to who speaks HTTP without it.
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
    content-length: 47\r\nconnection: close\r\n\r\nthis server speaks TLS: ask it with https://...";

/// A certificate and its key, ready to be used.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    /// Of both files, so that a change is seen.
    print: blake3::Hash,
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a certificate, behind which others may stand that it rests on, and its key, both as
    /// PEM. Nothing where neither is named.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn read(cert: &Path, key: &Path) -> Result<Option<Self>, String> {
        match (cert.as_os_str().is_empty(), key.as_os_str().is_empty()) {
            (true, true) => return Ok(None),
            (false, false) => {}
            (true, false) => return Err("tls.cert is not set, but tls.key is".into()),
            (false, true) => return Err("tls.key is not set, but tls.cert is".into()),
        }
        let of = |name, path: &Path| {
            let told = format!("{name} {}", path.display());
            (std::fs::read(path).map_err(|e| format!("{told}: {e}")), told)
        };
        let ((certs, cert), (secret, key)) = (of("tls.cert", cert), of("tls.key", key));
        let (certs, secret) = (certs?, secret?);
        let mut print = blake3::Hasher::new();
        print.update(&(certs.len() as u64).to_le_bytes()).update(&certs).update(&secret);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certs)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("{cert}: {e}"))?;
        if chain.is_empty() {
            return Err(format!("{cert}: holds no certificate as PEM"));
        }
        let secret = PrivateKeyDer::from_pem_slice(&secret)
            .map_err(|e| format!("{key}: holds no key as PEM: {e}"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
            .map_err(|e| format!("{cert} does not go with its key: {e}"))?;
        // What is spoken within it.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Some(Self { acceptor, print: print.finalize() }))
    }

    /// Begins TLS on a connection that has said its first byte.
    pub(super) async fn begin<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match timeout(HANDSHAKE_TIME_MAX, self.acceptor.accept(stream)).await {
            Ok(begun) => begun,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS did not begin in time")),
        }
    }
}

/// Whether a connection begins with TLS; who begins otherwise is told what is spoken here.
pub(super) async fn speaks_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    let came = timeout(HANDSHAKE_TIME_MAX, stream.peek(&mut first)).await;
    if !matches!(came, Ok(Ok(1))) {
        return false;
    }
    if first == [HANDSHAKE] {
        return true;
    }
    let told = async {
        stream.writable().await?;
        // Nothing was sent before it: there is room for all of it.
        stream.try_write(PLAIN)?;
        // Over bytes that nobody read, the answer would be lost with the connection.
        stream.try_read(&mut [0; 4096])
    };
    // Whether it hears that is its own affair.
    let _ = timeout(HANDSHAKE_TIME_MAX, told).await;
    false
}
