//! What servers show whoever connects to them over TLS.

use std::io::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What is said before TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// NATS says what it is.
    Nats,
    /// PostgreSQL is asked for TLS.
    Postgres,
}

/// The certificates of a PEM file.
///
/// # Panics
/// It cannot be read.
#[must_use]
pub fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).map(Result::unwrap).collect()
}

/// The certificate of this name that a server shows whoever trusts the authorities of a file.
///
/// # Errors
/// There is no connection, or the certificate is not to be trusted.
///
/// # Panics
/// The file cannot be read, or the server speaks no TLS.
pub async fn shown(
    authorities: &Path,
    (address, name): (&str, &str),
    before: Before,
) -> Result<CertificateDer<'static>, Error> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&std::fs::read(authorities).unwrap()) {
        roots.add(authority).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    let mut stream = TcpStream::connect(address).await?;
    match before {
        Before::Nothing => config.alpn_protocols = vec![b"h2".to_vec()],
        Before::Nats => while stream.read_u8().await? != b'\n' {},
        Before::Postgres => {
            stream.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").await?;
            assert_eq!(stream.read_u8().await?, b'S', "PostgreSQL speaks no TLS");
        }
    }
    let name = name.to_owned().try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
}
