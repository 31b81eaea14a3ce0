//! TLS between callers, services and each other: certificate, key and authorities from files, which are read again when they change
//! ([`Reread`]). Connections that are there go on; new ones have what is new.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use metrics::gauge;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::lifecycle::Lifecycle;
use crate::reread::{Reread, Source};

/// The files of the certificate that a process shows.
#[derive(Debug, Clone, Default, Args)]
pub struct Tls {
    /// A PEM file with the certificate that callers and operators are shown, and those that lead to its authority; absent: no TLS. It is
    /// read again when it changes.
    #[arg(id = "tls_certificate", long = "tls-certificate", value_name = "FILE", env = "FLOTILLA_TLS_CERTIFICATE")]
    pub certificate: Option<PathBuf>,
    /// A PEM file with its key.
    #[arg(id = "tls_key", long = "tls-key", value_name = "FILE", env = "FLOTILLA_TLS_KEY")]
    pub key: Option<PathBuf>,
}

/// What clients may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2 alone, for gRPC.
    Http2,
    /// HTTP/2 or HTTP/1.1, as the client chooses.
    Both,
}

impl Tls {
    /// The certificate, if there is one. The files are looked at until the process stops.
    ///
    /// # Errors
    /// A file cannot be read, or the two do not belong together: the error names them.
    pub fn open(&self, lifecycle: &Lifecycle) -> Result<Option<Certificate>, anyhow::Error> {
        let (certificate, key) = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => return Ok(None),
            _ => bail!("FLOTILLA_TLS_CERTIFICATE and FLOTILLA_TLS_KEY go together: set both, or none"),
        };
        let shown = Arc::new(Shown::open(certificate.clone(), key.clone())?);
        let looks = Arc::clone(&shown);
        lifecycle.run("certificate", |stop| async move { looks.0.look_until(&stop).await });
        Ok(Some(Certificate(shown)))
    }
}

/// The certificate of a process, for all its ports. Clones are the same.
#[derive(Debug, Clone)]
pub struct Certificate(Arc<Shown>);

impl Certificate {
    /// The acceptor of TLS connections of a port.
    ///
    /// # Errors
    /// The library of TLS cannot be set up.
    pub fn acceptor(&self, speaks: Speaks) -> Result<TlsAcceptor, anyhow::Error> {
        accepting(Arc::clone(&self.0), speaks)
    }
}

fn accepting(shown: Arc<Shown>, speaks: Speaks) -> Result<TlsAcceptor, anyhow::Error> {
    let builder =
        ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(shown);
    // A session that is taken up again shows no certificate, and so would go on with one that was replaced.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = match speaks {
        Speaks::Http2 => vec![b"h2".to_vec()],
        Speaks::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Whose certificates a process trusts.
#[derive(Debug, Clone, Default, Args)]
pub struct Authorities {
    /// A PEM file with the authorities that sign the certificates of services, NATS and OpenSearch, where they are called over TLS. It is
    /// read again when it changes: to change an authority, have both in it meanwhile.
    #[arg(id = "tls_authorities", long = "tls-authorities", value_name = "FILE", env = "FLOTILLA_TLS_AUTHORITIES")]
    pub file: Option<PathBuf>,
}

impl Authorities {
    /// What connects to services; None where there are no authorities.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub(crate) fn trusted(&self) -> Result<Option<Arc<Trusted>>, anyhow::Error> {
        self.file.clone().map(|file| Trusted::open(file).map(Arc::new)).transpose()
    }

    /// What `make` makes of a secret and of the authorities, as PEM; of None where no file is named. It is made again when one of them
    /// changes, until the process stops.
    ///
    /// # Errors
    /// One cannot be read, the file holds no certificate, or `make` fails.
    pub fn reread<T: Send + Sync + 'static>(
        &self,
        lifecycle: &Lifecycle,
        secret: Source,
        make: impl Fn(&[u8], Option<&[u8]>) -> Result<T, anyhow::Error> + Send + Sync + 'static,
    ) -> Result<Reread<T>, anyhow::Error> {
        let sources = std::iter::once(secret).chain(self.file.clone().map(Source::File)).collect();
        let made = Reread::open(sources, move |read| {
            let authorities = read.get(1).map(Vec::as_slice);
            authorities.map(certificates).transpose()?;
            make(&read[0], authorities)
        })?;
        let looks = made.clone();
        lifecycle.run("authorities", |stop| async move { looks.look_until(&stop).await });
        Ok(made)
    }
}

/// The authorities that are trusted now.
pub(crate) struct Trusted(Reread<Arc<ClientConfig>>);

impl Trusted {
    fn open(file: PathBuf) -> Result<Self, anyhow::Error> {
        Reread::open(vec![Source::File(file)], |files| trusting(&files[0])).map(Self)
    }

    /// Connects to a service, which must have a certificate of this name.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        name: ServerName<'static>,
    ) -> io::Result<TlsStream<TcpStream>> {
        self.0.look();
        let config = Arc::clone(&*self.0.get());
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, stream).await
    }
}

fn trusting(pem: &[u8]) -> Result<Arc<ClientConfig>, anyhow::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let mut config = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, anyhow::Error> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    ensure!(!all.is_empty(), "there is no certificate");
    Ok(all)
}

/// The certificate that is shown now.
struct Shown(Reread<CertifiedKey>);

/// rustls wants it; the key is nobody's to see.
impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

impl Shown {
    fn open(certificate: PathBuf, key: PathBuf) -> Result<Self, anyhow::Error> {
        Reread::open([certificate, key].map(Source::File).into(), |files| pair(&files[0], &files[1])).map(Self)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get())
    }
}

fn pair(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, anyhow::Error> {
    let chain = certificates(certificate).context("the first holds no certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("the second holds no key")?;
    let ends = ends(&chain)?;
    let pair = CertifiedKey::from_der(chain, key, &default_provider()).context("they do not belong together")?;
    gauge!("tls_certificate_expires_seconds").set(f64::from(u32::try_from(ends).unwrap_or(u32::MAX)));
    Ok(pair)
}

/// When the first of a chain of certificates ends, in seconds since 1970.
fn ends(chain: &[CertificateDer<'_>]) -> Result<i64, anyhow::Error> {
    let mut first = i64::MAX;
    for certificate in chain {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).context("a certificate is damaged")?;
        first = first.min(certificate.validity().not_after.timestamp());
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use reqwest::tls::TlsInfo;
    use reqwest::{Certificate, Client};
    use testkit::TestCertificates;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::server::{Bounds, LONGEST, serve};

    const NAME: &str = "fleet.test";

    fn shown(certificates: &TestCertificates) -> Arc<Shown> {
        Arc::new(Shown::open(certificates.file("tls.crt"), certificates.file("tls.key")).unwrap())
    }

    struct Served {
        address: SocketAddr,
        root: CertificateDer<'static>,
        stop: CancellationToken,
        server: TaskTracker,
    }

    impl Served {
        async fn by(certificates: &TestCertificates, shown: &Arc<Shown>, speaks: Speaks) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, server) = (CancellationToken::new(), TaskTracker::new());
            let http2_only = speaks == Speaks::Http2;
            let bounds = Bounds { connections: 100, streams: 10, http2_only, longest: LONGEST };
            let tls = accepting(Arc::clone(shown), speaks).unwrap();
            let router = Router::new().route("/", get(|| async { "well" }));
            server.spawn(serve(listener, router, (bounds, Some(tls)), stop.clone()));
            server.close();
            Self { address, root: certificates.root.clone().into(), stop, server }
        }

        /// A client with connections of its own.
        fn client(&self) -> Client {
            let builder = Client::builder().no_proxy().timeout(Duration::from_secs(20)).tls_info(true);
            builder
                .tls_certs_only([Certificate::from_der(&self.root).unwrap()])
                .resolve(NAME, self.address)
                .build()
                .unwrap()
        }

        fn url(&self) -> String {
            format!("https://{NAME}:{}/", self.address.port())
        }

        /// The certificate that a client is shown with its answer.
        async fn shows(&self, client: &Client) -> Vec<u8> {
            let answer = client.get(self.url()).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.extensions().get::<TlsInfo>().unwrap().peer_certificate().unwrap().to_vec()
        }

        /// What is agreed on with a client that offers these.
        async fn agreed(&self, offers: &[&str]) -> Result<Option<String>, io::Error> {
            let mut roots = RootCertStore::empty();
            roots.add(self.root.clone()).unwrap();
            let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
            let builder = builder.with_safe_default_protocol_versions().unwrap();
            let mut config = builder.with_root_certificates(roots).with_no_client_auth();
            config.alpn_protocols = offers.iter().map(|offer| offer.as_bytes().to_vec()).collect();
            let stream = TcpStream::connect(self.address).await?;
            let name = NAME.try_into().unwrap();
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            Ok(stream.get_ref().1.alpn_protocol().map(|agreed| String::from_utf8(agreed.to_vec()).unwrap()))
        }

        async fn end(self) {
            self.stop.cancel();
            self.server.wait().await;
        }
    }

    #[tokio::test]
    async fn a_client_chooses_what_it_speaks_and_one_without_tls_gets_nothing() {
        let folder = TestCertificates::new(NAME);
        let served = Served::by(&folder, &shown(&folder), Speaks::Both).await;
        let agreed = |offers: &'static [&str]| served.agreed(offers);
        assert_eq!(agreed(&["h2", "http/1.1"]).await.unwrap().as_deref(), Some("h2"));
        assert_eq!(agreed(&["http/1.1"]).await.unwrap().as_deref(), Some("http/1.1"));
        assert_eq!(agreed(&[]).await.unwrap(), None, "HTTP/1.1, as ever");
        agreed(&["spdy/3"]).await.unwrap_err();
        served.shows(&served.client()).await;
        let plain = Client::builder().no_proxy().build().unwrap();
        plain.get(format!("http://{}/", served.address)).send().await.unwrap_err();
        let stranger = Client::builder().no_proxy().resolve(NAME, served.address).build().unwrap();
        stranger.get(served.url()).send().await.unwrap_err();
        served.end().await;

        let served = Served::by(&folder, &shown(&folder), Speaks::Http2).await;
        assert_eq!(served.agreed(&["h2"]).await.unwrap().as_deref(), Some("h2"));
        served.agreed(&["http/1.1"]).await.unwrap_err();
        served.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_certificate_that_changes_is_shown_to_new_connections_and_no_request_fails() {
        let folder = TestCertificates::new(NAME);
        let shown = shown(&folder);
        let served = Arc::new(Served::by(&folder, &shown, Speaks::Both).await);
        // Some keep their connection, some have a new one for each request.
        let ends = Arc::new(AtomicBool::new(false));
        let clients = TaskTracker::new();
        for keeps in [true, true, false, false] {
            let (served, ends) = (Arc::clone(&served), Arc::clone(&ends));
            clients.spawn(async move {
                let mut client = served.client();
                while !ends.load(Ordering::SeqCst) {
                    served.shows(&client).await;
                    if !keeps {
                        client = served.client();
                    }
                }
            });
        }
        clients.close();
        let old = served.client();
        let first = served.shows(&old).await;
        for _ in 0..20 {
            let before = served.shows(&served.client()).await;
            folder.renew();
            shown.0.look();
            assert_ne!(served.shows(&served.client()).await, before, "a new connection is shown the new one");
        }
        assert_eq!(served.shows(&old).await, first, "one that was there goes on");
        // What cannot be shown is left alone: half a file, or a key of another certificate.
        let (last, other) = (served.shows(&served.client()).await, TestCertificates::new(NAME));
        for (file, text) in
            [("tls.crt", String::new()), ("tls.key", std::fs::read_to_string(other.file("tls.key")).unwrap())]
        {
            let whole = std::fs::read(folder.file(file)).unwrap();
            std::fs::write(folder.file(file), text).unwrap();
            shown.0.look();
            assert_eq!(served.shows(&served.client()).await, last, "{file}");
            std::fs::write(folder.file(file), whole).unwrap();
        }
        folder.renew();
        shown.0.look();
        assert_ne!(served.shows(&served.client()).await, last, "and a good one is taken again");
        ends.store(true, Ordering::SeqCst);
        clients.wait().await;
        Arc::into_inner(served).unwrap().end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_shake_hands_is_closed() {
        let folder = TestCertificates::new(NAME);
        let served = Served::by(&folder, &shown(&folder), Speaks::Both).await;
        let began = tokio::time::Instant::now();
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        silent.read_to_end(&mut Vec::new()).await.ok();
        assert!((10..=17).contains(&began.elapsed().as_secs()), "after {:?}", began.elapsed());
        served.end().await;
    }

    #[tokio::test]
    async fn a_caller_trusts_its_authorities_and_the_name_that_it_called() {
        let (folder, other) = (TestCertificates::new(NAME), TestCertificates::new(NAME));
        let served = Served::by(&folder, &shown(&folder), Speaks::Http2).await;
        let authorities = folder.file("ca.crt");
        let trusted = Trusted::open(authorities.clone()).unwrap();
        let connect = async |name: &'static str| {
            let connected = trusted.connect(served.address, name.try_into().unwrap()).await;
            connected.map(drop).map_err(|error| error.to_string())
        };
        connect(NAME).await.unwrap();
        let wrong = connect("other.test").await.unwrap_err();
        assert!(wrong.contains("not valid for name"), "{wrong}");
        // What is no authority is left alone; another one counts at the next connection.
        let before = std::fs::read(&authorities).unwrap();
        for unusable in [&b""[..], b"nothing"] {
            std::fs::write(&authorities, unusable).unwrap();
            connect(NAME).await.unwrap();
        }
        std::fs::copy(other.file("ca.crt"), &authorities).unwrap();
        let stranger = connect(NAME).await.unwrap_err();
        assert!(stranger.contains("invalid peer certificate"), "{stranger}");
        std::fs::write(&authorities, before).unwrap();
        connect(NAME).await.unwrap();
        served.end().await;
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused_at_start() {
        let (folder, other) = (TestCertificates::new(NAME), TestCertificates::new(NAME));
        let refused = |certificate, key| format!("{:#}", Shown::open(certificate, key).unwrap_err());
        let mixed = refused(folder.file("tls.crt"), other.file("tls.key"));
        assert!(mixed.contains("do not belong together") && mixed.contains("tls.key"), "{mixed}");
        let none = refused(folder.file("tls.key"), folder.file("tls.key"));
        assert!(none.contains("holds no certificate"), "{none}");
        let missing = refused(folder.file("nothing"), folder.file("tls.key"));
        assert!(missing.contains("reading "), "{missing}");
    }
}
