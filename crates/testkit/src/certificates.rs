//! Certificates of an authority of a test's own.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::unique;

/// A folder with a certificate (`tls.crt`), its key (`tls.key`), and the authority that has signed it (`ca.crt`). It is removed when
/// this is dropped.
pub struct TestCertificates {
    folder: PathBuf,
    name: String,
    authority: Issuer<'static, KeyPair>,
    /// The authority's certificate, as DER.
    pub root: Vec<u8>,
}

impl TestCertificates {
    /// A new authority, and a certificate of this name.
    ///
    /// # Panics
    /// A file cannot be written.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(unique("flotilla-tls-"));
        std::fs::create_dir(&folder).unwrap();
        let (mut params, key) = (CertificateParams::new(Vec::new()).unwrap(), KeyPair::generate().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("ca.crt"), root.pem()).unwrap();
        let root = root.der().to_vec();
        let certificates = Self { folder, name: name.to_owned(), authority: Issuer::new(params, key), root };
        certificates.renew();
        certificates
    }

    /// A file in the folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Puts a new certificate and key in place of those that are there.
    ///
    /// # Panics
    /// A file cannot be written.
    pub fn renew(&self) {
        let (params, key) = (CertificateParams::new([self.name.clone()]).unwrap(), KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.file("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(self.file("tls.key"), key.serialize_pem()).unwrap();
    }
}

impl Drop for TestCertificates {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
