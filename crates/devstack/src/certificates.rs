//! Certificates by an authority of our own: for a stack that speaks TLS, and for a development cluster.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use chrono::{DateTime, Datelike as _, TimeDelta, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::stack_dir::{self, StackDir};

/// How long a certificate is valid.
pub const VALID: TimeDelta = TimeDelta::days(90);
/// How long before its end it is made anew.
pub const RENEWED: TimeDelta = TimeDelta::days(30);
/// How long an authority is valid.
const AUTHORITY_VALID: TimeDelta = TimeDelta::days(3_650);
/// Who may connect to PostgreSQL, and how: by password, over TLS alone.
const HBA: &str = "hostssl all all all scram-sha-256\n";

/// A certificate and its key, as PEM.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// An authority, which signs certificates.
pub struct Authority {
    /// Its own certificate and key.
    pub pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make() -> Result<Self, anyhow::Error> {
        let (mut params, key) = (valid_for(AUTHORITY_VALID, Vec::new())?, KeyPair::generate()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "flotilla development");
        let pair = Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        Ok(Self { pair, issuer: Issuer::new(params, key) })
    }

    /// One that was made before.
    ///
    /// # Errors
    /// Certificate or key cannot be read.
    pub fn read(pair: Pair) -> Result<Self, anyhow::Error> {
        let key = KeyPair::from_pem(&pair.key).context("reading the authority's key")?;
        let issuer = Issuer::from_ca_cert_pem(&pair.certificate, key).context("reading the authority's certificate")?;
        Ok(Self { pair, issuer })
    }

    /// A certificate of these names and addresses, for servers and for their peers, valid for [`VALID`].
    ///
    /// # Errors
    /// A name is none.
    pub fn issue(&self, names: &[String]) -> Result<Pair, anyhow::Error> {
        let (mut params, key) = (valid_for(VALID, names.to_vec())?, KeyPair::generate()?);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// From yesterday on, for clocks that are behind.
fn valid_for(time: TimeDelta, names: Vec<String>) -> Result<CertificateParams, anyhow::Error> {
    let mut params = CertificateParams::new(names)?;
    let day = |at: DateTime<Utc>| -> Result<_, anyhow::Error> {
        let of_year = |number: u32| u8::try_from(number);
        Ok(rcgen::date_time_ymd(at.year(), of_year(at.month())?, of_year(at.day())?))
    };
    let now: DateTime<Utc> = std::time::SystemTime::now().into();
    (params.not_before, params.not_after) = (day(now - TimeDelta::days(1))?, day(now + time)?);
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

/// The certificate of a stack, with which all its processes speak TLS on loopback.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The folder of `tls.crt`, `tls.key` and `ca.crt`.
    pub folder: PathBuf,
    /// The same for PostgreSQL, whose user may not enter the first.
    pub of_postgres: PathBuf,
}

impl Certificates {
    /// Those of a stack's folder, if there are any.
    ///
    /// # Errors
    /// The folder of PostgreSQL cannot be noted.
    pub fn of(home: &StackDir) -> Result<Option<Self>, anyhow::Error> {
        match home.authorities() {
            Some(_) => Ok(Some(Self { folder: home.path("tls"), of_postgres: home.data_of_user("tls")? })),
            None => Ok(None),
        }
    }

    /// Makes a new certificate, by the authority of the folder. Other authorities that are trusted stay so.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn renew(home: &StackDir) -> Result<Self, anyhow::Error> {
        let all = Self { folder: home.path("tls"), of_postgres: home.data_of_user("tls")? };
        let authority = authority(home)?;
        let pair = authority.issue(&["localhost", "127.0.0.1"].map(ToOwned::to_owned))?;
        let mut trusted = match home.authorities() {
            Some(file) => fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?,
            None => String::new(),
        };
        if !trusted.contains(&authority.pair.certificate) {
            trusted.push_str(&authority.pair.certificate);
        }
        let files = [("tls.key", &pair.key), ("tls.crt", &pair.certificate), ("ca.crt", &trusted)];
        // The files of PostgreSQL's user are in a folder of ours: where that user may write, root must not.
        for (folder, mode) in [(&all.folder, 0o700), (&all.of_postgres, 0o711)] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
            fs::set_permissions(folder, Permissions::from_mode(mode))?;
        }
        for (name, text) in files {
            stack_dir::write_secret(&all.folder.join(name), text.as_bytes())?;
            stack_dir::give_secret(&all.of_postgres.join(name), text.as_bytes())?;
        }
        stack_dir::give_secret(&all.of_postgres.join("pg_hba.conf"), HBA.as_bytes())?;
        Ok(all)
    }

    /// From now on the folder's fleet speaks no TLS. The authority stays.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub fn remove(home: &StackDir) -> Result<(), anyhow::Error> {
        for folder in [home.path("tls"), home.data_of_user("tls")?] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", folder.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The authority of a folder, which is made once.
fn authority(home: &StackDir) -> Result<Authority, anyhow::Error> {
    let file = |end: &str| home.path("secrets").join(format!("tls-authority.{end}"));
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    // The certificate is written last: with it, both are there.
    if file("crt").exists() {
        return Authority::read(Pair { certificate: read(&file("crt"))?, key: read(&file("key"))? });
    }
    let made = Authority::make()?;
    stack_dir::write_secret(&file("key"), made.pair.key.as_bytes())?;
    stack_dir::write_secret(&file("crt"), made.pair.certificate.as_bytes())?;
    Ok(made)
}
