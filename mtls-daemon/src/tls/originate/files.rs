//! The files that a rule names, read into what a handshake needs, and whether they changed since.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::FileError;
use crate::policy::{TlsMode, TlsSettings};

/// Larger than any bundle of authorities.
const LARGEST: u64 = 4 * 1024 * 1024;
/// A file changed so shortly ago may change again under the same stamp.
const YOUNG: Duration = Duration::from_secs(2);

/// Where distributions keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What decides how a connection is verified and what is shown on it, apart from names. Rules that
/// agree in it share one configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sources {
    /// Certificate and key, with MUTUAL.
    client: Option<(Arc<str>, Arc<str>)>,
    roots: Roots,
    crl: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Roots {
    System,
    File(Arc<str>),
    /// `insecureSkipVerify`.
    Nothing,
}

/// The files' contents, parsed.
pub(super) struct Material {
    pub client: Option<Arc<CertifiedKey>>,
    /// None: the server is not verified.
    pub anchors: Option<Vec<TrustAnchor<'static>>>,
    pub crls: Vec<CertRevocationList<'static>>,
    /// As messages call where the anchors come from.
    pub roots: Arc<str>,
}

impl Sources {
    pub fn of(settings: &TlsSettings) -> Self {
        let mutual = settings.mode == TlsMode::Mutual;
        let pair = settings.client_certificate.clone().zip(settings.private_key.clone());
        Self {
            client: pair.filter(|_| mutual),
            roots: match (&settings.ca_certificates, settings.insecure_skip_verify) {
                (_, true) => Roots::Nothing,
                (Some(path), false) => Roots::File(path.clone()),
                (None, false) => Roots::System,
            },
            crl: settings.ca_crl.clone().filter(|_| !settings.insecure_skip_verify),
        }
    }

    /// The client certificate's file.
    pub fn certificate(&self) -> Option<&Arc<str>> {
        self.client.as_ref().map(|(certificate, _)| certificate)
    }

    /// Device, inode, size and times of each file, links followed. None: it cannot be read, or it
    /// changed so shortly ago that the next change might not show.
    pub(super) fn stamp(&self) -> Vec<Option<Stamp>> {
        let client = self.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        let roots = match &self.roots {
            Roots::File(path) => Some(&**path),
            Roots::System => Some(system_roots()),
            Roots::Nothing => None,
        };
        let paths = client.chain(&self.crl).map(|path| &**path).chain(roots);
        paths.map(Stamp::of).collect()
    }

    pub(super) fn read(&self) -> Result<Material, FileError> {
        let client = match &self.client {
            Some((certificate, key)) => Some(client(certificate, key)?),
            None => None,
        };
        let (anchors, roots) = match &self.roots {
            Roots::Nothing => (None, "nothing".into()),
            Roots::File(path) => (Some(anchors("caCertificates", path)?), path.clone()),
            Roots::System => {
                let path: Arc<str> = system_roots().into();
                (Some(anchors("the system's authorities", &path)?), path)
            }
        };
        let crls = match &self.crl {
            Some(path) => crls(path)?,
            None => Vec::new(),
        };
        Ok(Material { client, anchors, crls, roots })
    }
}

pub(in crate::tls) fn system_roots() -> &'static str {
    let found = SYSTEM_ROOTS.into_iter().find(|path| Path::new(path).exists());
    found.unwrap_or(SYSTEM_ROOTS[0])
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tls) struct Stamp {
    place: (u64, u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(in crate::tls) fn of(path: impl AsRef<Path>) -> Option<Self> {
        let meta = fs::metadata(path.as_ref()).ok()?;
        let stamp = Self {
            place: (meta.dev(), meta.ino(), meta.size()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(stamp.changed.0).unwrap_or_default());
        (now.abs_diff(changed) > YOUNG).then_some(stamp)
    }
}

fn read(field: &'static str, path: &Arc<str>) -> Result<Vec<u8>, FileError> {
    let fail = |why: String| FileError { field, path: path.clone(), why };
    if !path.starts_with('/') {
        return Err(fail("is no absolute path; files are looked for on the node".to_owned()));
    }
    let cannot = |error: std::io::Error| fail(format!("cannot be read on the node: {error}"));
    let meta = fs::metadata(&**path).map_err(cannot)?;
    // A FIFO would be waited on for ever.
    let irregular = || fail("is no regular file".to_owned());
    if !meta.is_file() {
        return Err(irregular());
    }
    // Nor is whoever holds a lease on it, or has put a FIFO in its place meanwhile.
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(&**path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(irregular());
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > LARGEST {
        return Err(fail(format!("is larger than {LARGEST} bytes")));
    }
    Ok(bytes)
}

/// Every PEM block of one kind. What the file holds instead is never repeated: it may be a secret.
fn blocks<T: PemObject>(
    field: &'static str,
    path: &Arc<str>,
    what: &str,
) -> Result<Vec<T>, FileError> {
    let fail = |why: String| FileError { field, path: path.clone(), why };
    let text = zeroize::Zeroizing::new(read(field, path)?);
    let blocks = T::pem_slice_iter(&text).collect::<Result<Vec<T>, _>>();
    let blocks = blocks.map_err(|_| fail("is no well-formed PEM".to_owned()))?;
    if blocks.is_empty() {
        return Err(fail(format!("holds no {what} in PEM")));
    }
    Ok(blocks)
}

fn client(certificate: &Arc<str>, key: &Arc<str>) -> Result<Arc<CertifiedKey>, FileError> {
    const CERTIFICATE: &str = "clientCertificate";
    const KEY: &str = "privateKey";
    let fail = |field, path: &Arc<str>, why: String| FileError { field, path: path.clone(), why };
    let chain: Vec<CertificateDer<'static>> = blocks(CERTIFICATE, certificate, "certificate")?;
    let private = blocks::<PrivateKeyDer<'static>>(KEY, key, "private key")?.swap_remove(0);
    let private = any_supported_type(&private)
        .map_err(|error| fail(KEY, key, format!("is no key that can be used: {error}")))?;
    match X509Certificate::from_der(&chain[0]) {
        Ok((_, parsed)) if parsed.version().0 != 2 => {
            let why = "is X.509 v1: sign it with extensions, `openssl x509 -req -in client.csr -CA \
                       ca.pem -CAkey ca.key -CAcreateserial -out client.pem -extfile <(echo \
                       extendedKeyUsage=clientAuth)`";
            return Err(fail(CERTIFICATE, certificate, why.to_owned()));
        }
        Ok(_) => {}
        Err(_) => return Err(fail(CERTIFICATE, certificate, "cannot be parsed".to_owned())),
    }
    let certified = CertifiedKey::new(chain, private);
    certified.keys_match().map_err(|_| {
        fail(CERTIFICATE, certificate, format!("is not the certificate of the key in {key}"))
    })?;
    Ok(Arc::new(certified))
}

fn anchors(field: &'static str, path: &Arc<str>) -> Result<Vec<TrustAnchor<'static>>, FileError> {
    let certificates: Vec<CertificateDer<'static>> = blocks(field, path, "certificate")?;
    // One that cannot be read trusts nobody; the others still count, as elsewhere.
    let anchors: Vec<_> = certificates
        .iter()
        .filter_map(|certificate| Some(anchor_from_trusted_cert(certificate).ok()?.to_owned()))
        .collect();
    if anchors.is_empty() {
        let why = "holds no certificate of an authority that can be parsed".to_owned();
        return Err(FileError { field, path: path.clone(), why });
    }
    Ok(anchors)
}

fn crls(path: &Arc<str>) -> Result<Vec<CertRevocationList<'static>>, FileError> {
    let lists: Vec<CertificateRevocationListDer<'static>> =
        blocks("caCrl", path, "revocation list")?;
    let parse = |der: &CertificateRevocationListDer<'_>| {
        let list = OwnedCertRevocationList::from_der(der).map_err(|error| FileError {
            field: "caCrl",
            path: path.clone(),
            why: format!("holds a revocation list that cannot be parsed: {error}"),
        })?;
        Ok(list.into())
    };
    lists.iter().map(parse).collect()
}
