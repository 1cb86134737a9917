//! TLS, if a certificate is given.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

/// Accepts TLS with the certificate chain and the key of two PEM files.
///
/// # Errors
/// If a file can't be read, holds something else, or the two don't belong together.
pub fn acceptor(chain: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| format!("--tls-cert {}: {e}", chain.display()))?;
    if certificates.is_empty() {
        return Err(format!("--tls-cert {}: no certificate in it", chain.display()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| format!("--tls-key {}: {e}", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|b| b.with_no_client_auth().with_single_cert(certificates, private))
        .map_err(|e| format!("--tls-cert {}: {e}", chain.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::acceptor;
    use std::path::PathBuf;

    fn data(name: &str) -> PathBuf {
        format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR")).into()
    }

    #[test]
    fn tls_files_that_do_not_fit_are_named() {
        let error =
            |chain: &str, key: &str| acceptor(&data(chain), &data(key)).err().unwrap_or_default();
        assert!(error("none.pem", "key.pem").contains("none.pem"));
        assert!(error("key.pem", "key.pem").contains("no certificate"));
        assert!(error("cert.pem", "cert.pem").contains("--tls-key"));
    }
}
