//! What commands that ask by TLS have in common.

use std::sync::Arc;

use rustls::crypto::ring;
use ureq::tls::{RootCerts, TlsConfig};

/// TLS that trusts these, by the one provider that is linked for clients.
pub(crate) fn trusting(roots: RootCerts) -> TlsConfig {
    TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build()
}
