//! What nodes know each other by: one secret, in a file that only its owner reads.
//!
//! From it both sides derive one Ed25519 key, and each proves to the other that it has it: mutual
//! TLS 1.3 with that key as a raw public key (RFC 7250), so there are no certificates that
//! somebody would have to make, carry and renew. Who records the traffic and learns the secret
//! later cannot read it: the keys of a session are fresh. Whoever has the secret is a node, and can
//! be the gateway to other nodes; it is changed by a new file everywhere.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::AlwaysResolvesClientRawPublicKeys;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified};
use tokio_rustls::rustls::crypto::verify_tls13_signature_with_raw_key;
use tokio_rustls::rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::server::AlwaysResolvesServerRawPublicKeys;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Hexadecimal digits of a secret: 256 bits, which nobody guesses.
const DIGITS: usize = 64;
/// Before the seed in a PKCS #8 file of an Ed25519 key (RFC 8410).
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// A secret that can be used.
#[derive(Clone)]
pub struct Secret {
    /// For ractor_cluster's own handshake.
    pub(super) cookie: String,
    seed: [u8; 32],
}

/// Why one cannot.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The file cannot be read.
    #[error("cannot read the secret {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Others can read it.
    #[error("{0}: others than its owner can read the secret; run chmod 600 on it")]
    Open(String),
    /// It may be guessed.
    #[error(
        "{0}: a secret has 64 hexadecimal digits and nothing else; `mtplx node secret FILE` makes \
         one"
    )]
    Weak(String),
    /// The cryptography refused it.
    #[error("the secret cannot be made a key: {0}")]
    Key(#[from] Error),
}

impl Secret {
    /// Reads one.
    ///
    /// # Errors
    /// [`Unfit`] with the way to mend it.
    pub fn read(path: &Path) -> Result<Self, Unfit> {
        let shown = path.display().to_string();
        let read = |source| Unfit::Read { path: shown.clone(), source };
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().map_err(read)?);
            if mode & 0o077 != 0 {
                return Err(Unfit::Open(shown));
            }
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::new(&text).ok_or(Unfit::Weak(shown))
    }

    /// The secret that stands there, if it may have been drawn at random.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() != DIGITS || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let text = text.to_ascii_lowercase();
        let derive = |what: &str| {
            let context = format!("mtplx 2026-11 between nodes: {what}");
            blake3::derive_key(&context, text.as_bytes())
        };
        let cookie = blake3::Hash::from_bytes(derive("cookie")).to_hex().to_string();
        Some(Self { cookie, seed: derive("key") })
    }

    /// The gateway's side of a connection.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor, Unfit> {
        let (provider, own, peer) = self.identity()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(peer))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// The node's side of one.
    pub(super) fn connector(&self) -> Result<TlsConnector, Unfit> {
        let (provider, own, peer) = self.identity()?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(peer))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn identity(&self) -> Result<(Arc<CryptoProvider>, Arc<CertifiedKey>, Same), Unfit> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let der = [&PKCS8[..], &self.seed].concat();
        let key: Arc<dyn SigningKey> =
            aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der))?;
        let public = key.public_key().ok_or(Error::General("it has no public key".into()))?;
        let public = public.as_ref().to_vec();
        let own = CertifiedKey::new(vec![CertificateDer::from(public.clone())], key);
        let algorithms = provider.signature_verification_algorithms;
        Ok((provider, Arc::new(own), Same { public, algorithms }))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The other has the same key, or it is nobody.
#[derive(Debug)]
struct Same {
    public: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// What is said of who does not.
pub(super) const OTHER_SECRET: &str = "the other side does not hold the same secret";

impl Same {
    fn check(&self, key: &CertificateDer<'_>) -> Result<(), Error> {
        // Public on both sides: no time of comparison tells anything.
        let same = key.as_ref() == self.public;
        if same { Ok(()) } else { Err(Error::General(OTHER_SECRET.into())) }
    }

    fn signed(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Same {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Same {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What both sides make of a connection between holders of these secrets.
    async fn shake(server: &str, client: &str) -> (Result<u8, String>, Result<(), String>) {
        let (server, client) = (Secret::new(server).unwrap(), Secret::new(client).unwrap());
        let (here, there) = tokio::io::duplex(1 << 14);
        let accept = async {
            let mut stream =
                server.acceptor().unwrap().accept(here).await.map_err(|e| e.to_string())?;
            stream.read_u8().await.map_err(|e| e.to_string())
        };
        let connect = async {
            let name = ServerName::try_from("node").unwrap();
            let mut stream = client
                .connector()
                .unwrap()
                .connect(name, there)
                .await
                .map_err(|e| e.to_string())?;
            stream.write_u8(7).await.map_err(|e| e.to_string())?;
            stream.flush().await.map_err(|e| e.to_string())?;
            // It stays open until the other side has read.
            Ok(stream)
        };
        let (accepted, connected) = tokio::join!(accept, connect);
        (accepted, connected.map(drop))
    }

    #[tokio::test]
    async fn only_who_has_the_same_secret_is_spoken_with() {
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        assert_eq!(shake(&one, &one).await, (Ok(7), Ok(())));
        let (accepted, connected) = shake(&one, &two).await;
        assert!(accepted.is_err());
        assert!(connected.unwrap_err().contains(OTHER_SECRET));
    }

    #[test]
    fn a_secret_is_64_hexadecimal_digits_and_nobody_elses_to_read() {
        for weak in ["", "short", &"correct horse battery staple ".repeat(3), &"1".repeat(63)] {
            assert!(Secret::new(weak).is_none(), "{weak}");
        }
        assert!(Secret::new(&"g".repeat(64)).is_none() && Secret::new(&"1".repeat(65)).is_none());
        assert!(Secret::new(&format!("{}\n", "aB".repeat(32))).is_some());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "3".repeat(64)).unwrap();
        let set = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, mode).unwrap();
        };
        set(0o644);
        assert!(Secret::read(&path).unwrap_err().to_string().contains("chmod 600"));
        set(0o600);
        std::fs::write(&path, "x".repeat(64)).unwrap();
        assert!(Secret::read(&path).unwrap_err().to_string().contains("mtplx node secret"));
        std::fs::write(&path, "3".repeat(64)).unwrap();
        assert_eq!(format!("{:?}", Secret::read(&path).unwrap()), "Secret");
    }
}
