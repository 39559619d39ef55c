//! What the server signs with at the moment: replaced as a whole when roots or files change.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, SigningKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};
use zeroize::Zeroize;

use super::StateDir;
use super::roots::{self, Loaded};
use super::state::Stamp;
use crate::identity::ca::sealed::SealingKey;
use crate::identity::ca::{Authority, CaError, Subject, files};
use crate::identity::node::ca_id;
use crate::identity::revocations::SIGNED_PREFIX;
use crate::identity::{Bundle, KeyType, TrustDomain};
use crate::tls::authority::AuthorityServer;
use crate::tls::svid::verify_svid;

/// Istio's names in a directory of `cacerts`.
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";

/// Where the signing key comes from.
pub enum Source {
    /// Roots of the CA's own directory.
    Own,
    /// Somebody else's root signed our certificate: a directory as Istio's `cacerts`.
    PluggedIn(PathBuf),
}

pub struct Signing {
    pub authority: Authority,
    pub anchors: Vec<CertificateDer<'static>>,
    /// All trust anchors as PEM.
    pub anchors_pem: String,
    /// The same, for whoever shows a certificate.
    bundle: Bundle,
    pub server: AuthorityServer,
    /// From when on the server's own certificate is good, and when it has to be made anew.
    begin: SystemTime,
    pub renew: SystemTime,
    /// The key identifier that certificates of this authority name as their issuer's.
    pub issuer: String,
    statement_key: KeyPair,
    /// The certificate of that key, and those between it and a trust anchor.
    pub statement_chain: Vec<CertificateDer<'static>>,
    stamps: Vec<Stamp>,
}

impl Source {
    pub fn stamps(&self, directory: &StateDir) -> Result<Vec<Stamp>, CaError> {
        match self {
            Self::Own => Ok(vec![Stamp::of(&directory.path(roots::FILE))?]),
            Self::PluggedIn(folder) => [CERTIFICATE, KEY, CHAIN, ROOTS]
                .iter()
                .map(|name| Stamp::of(&folder.join(name)))
                .collect(),
        }
    }
}

impl Signing {
    pub fn load(
        source: &Source,
        directory: &StateDir,
        sealing: Option<&SealingKey>,
        trust_domain: &TrustDomain,
        dns_names: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let stamps = source.stamps(directory)?;
        let Loaded { authority, anchors } = match source {
            Source::Own => roots::load(directory, sealing, now)?,
            Source::PluggedIn(folder) => plugged_in(folder, now)?,
        };
        let name =
            |role| ca_id(trust_domain, role).map_err(|error| CaError::Sign(error.to_string()));
        let (server_id, statement_id) = (name("server")?, name("revocations")?);
        let subject = Subject { id: &server_id, dns_names };
        let svid = authority.issue_named(subject, KeyType::default(), lifetime, now)?;
        // Here at the latest a chain that does not lead to the roots shows.
        let bundle = Bundle { trust_domain: trust_domain.clone(), anchors: anchors.clone() };
        verify_svid(&svid.chain, std::slice::from_ref(&bundle), Some(&[server_id]), now)
            .map_err(|why| CaError::Sign(format!("what this CA signs is not trusted: {why}")))?;
        let server = AuthorityServer::new(&svid, &bundle)
            .map_err(|error| CaError::Sign(error.to_string()))?;
        let left = svid.not_after.duration_since(now).unwrap_or_default();
        let (begin, renew) = (svid.not_before, now + left / 2);

        let statement_key =
            KeyPair::generate().map_err(|error| CaError::Sign(error.to_string()))?;
        let to_the_end = authority.not_after().duration_since(now).unwrap_or_default();
        let subject = Subject { id: &statement_id, dns_names: &[] };
        let statement_chain = authority.sign(&statement_key, subject, to_the_end, now)?.chain;
        let issuer = authority_key_id(&statement_chain[0]);
        let anchors_pem = anchors.iter().map(|it| pem_of(it)).collect();
        Ok(Self {
            authority,
            anchors,
            anchors_pem,
            bundle,
            server,
            begin,
            renew,
            issuer,
            statement_key,
            statement_chain,
            stamps,
        })
    }

    pub fn is_current(&self, source: &Source, directory: &StateDir, now: SystemTime) -> bool {
        // Made while the clock was ahead: nobody believes it now, nor what signs lists.
        let good = (self.begin..self.renew).contains(&now);
        good && source.stamps(directory).is_ok_and(|stamps| stamps == self.stamps)
    }

    /// Whether a client's chain verifies with the anchors of now.
    pub fn trusts(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> bool {
        verify_svid(chain, std::slice::from_ref(&self.bundle), None, now).is_ok()
    }

    /// What of the certificates that everything hangs from ends soon, or has ended.
    pub fn endings(&self, now: SystemTime) -> Vec<Ending> {
        let signer = self.authority.certificate();
        let others = self.anchors.iter().filter(|it| *it != signer);
        let named = std::iter::once(("the certificate that signs", signer))
            .chain(others.map(|it| ("a root", it)));
        named.filter_map(|(what, it)| Ending::of(what, it, now)).collect()
    }

    /// A signature over a revocation list.
    pub fn sign_list(&self, list: &[u8]) -> Result<Vec<u8>, CaError> {
        let signed = self.statement_key.sign(&[SIGNED_PREFIX, list].concat());
        signed.map_err(|error| CaError::Sign(error.to_string()))
    }
}

/// A certificate of the CA's own whose end is near, or past.
#[derive(Debug, PartialEq, Eq)]
pub struct Ending {
    what: &'static str,
    not_after: SystemTime,
    pub ended: bool,
}

impl Ending {
    /// A tenth of its life, or less, is left: of a root of ten years, the last one.
    fn of(what: &'static str, certificate: &CertificateDer<'_>, now: SystemTime) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let validity = parsed.validity();
        let not_before: SystemTime = validity.not_before.to_datetime().into();
        let not_after: SystemTime = validity.not_after.to_datetime().into();
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let left = not_after.duration_since(now).unwrap_or_default();
        (left <= life / 10).then_some(Self { what, not_after, ended: left.is_zero() })
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.ended { "ended" } else { "ends" };
        let at = humantime::format_rfc3339_seconds(self.not_after);
        write!(f, "{} {verb} at {at}", self.what)
    }
}

impl Drop for Signing {
    fn drop(&mut self) {
        self.statement_key.zeroize();
    }
}

fn plugged_in(folder: &Path, now: SystemTime) -> Result<Loaded, CaError> {
    let read = |name| files::read_mounted(&folder.join(name));
    let unusable = |why| CaError::File { path: folder.to_owned(), why };
    let roots: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(read(ROOTS)?.as_bytes()).collect();
    let anchors = roots.map_err(|error| unusable(format!("{ROOTS}: {error}")))?;
    if anchors.is_empty() {
        return Err(unusable(format!("{ROOTS} has no certificate")));
    }
    let authority =
        Authority::plugged_in(&read(CERTIFICATE)?, &read(KEY)?, &read(CHAIN)?, &anchors, now)
            .map_err(unusable)?;
    Ok(Loaded { authority, anchors })
}

/// Lower-case hex; empty if there is none.
pub fn authority_key_id(certificate: &CertificateDer<'_>) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return String::new() };
    let id = certificate.extensions().iter().find_map(|it| match it.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
        _ => None,
    });
    id.map_or_else(String::new, |id| id.0.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub fn pem_of(certificate: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.to_vec()), config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    #[test]
    fn the_end_of_a_root_is_said_a_tenth_of_its_life_before() {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let made = SystemTime::UNIX_EPOCH + 50 * YEAR;
        let (root, _) = Authority::generate(&domain, KeyType::default(), made).unwrap();
        let said = |now| Ending::of("a root", root.certificate(), now);
        assert_eq!(said(made), None);
        assert_eq!(said(made + 8 * YEAR), None);
        let soon = said(made + 9 * YEAR + YEAR / 100).expect("its last year");
        assert!(!soon.ended && soon.to_string().starts_with("a root ends at 20"), "{soon}");
        let past = said(made + 10 * YEAR).expect("its end");
        assert!(past.ended && past.to_string().contains("ended"), "{past}");
    }
}
