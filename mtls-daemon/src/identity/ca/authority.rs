//! A signing certificate with its key, and the certificates it makes.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroize;

use super::CaError;
use crate::identity::{KeyType, SpiffeId, Svid, TrustDomain};
use crate::tls::provider::random_bytes;

/// As Istio's self-signed root: ten years.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Istio backdates by this much, so that a peer whose clock is a little behind accepts a fresh SVID.
const BACKDATE: Duration = Duration::from_secs(120);

/// A CA certificate and its key. The key's encoding is wiped when this is dropped.
pub struct Authority {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    not_after: SystemTime,
    organization: Option<String>,
    /// What stands between a leaf and the root, in that order: nothing if this is a root.
    intermediates: Vec<CertificateDer<'static>>,
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub id: &'a SpiffeId,
    /// Beside the ID; only a server that is found by name has any.
    pub dns_names: &'a [String],
}

/// A certificate for a key that its holder made.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Lower-case hex.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Authority {
    /// A new root for `trust_domain`, valid for ten years; its certificate also as PEM.
    pub fn generate(
        trust_domain: &TrustDomain,
        key_type: KeyType,
        now: SystemTime,
    ) -> Result<(Self, String), CaError> {
        Self::generate_named(trust_domain, None, key_type, now)
    }

    /// With a name beside the trust domain's: during a rotation it has two roots, and nobody should
    /// take one for the other.
    pub fn generate_named(
        trust_domain: &TrustDomain,
        name: Option<&str>,
        key_type: KeyType,
        now: SystemTime,
    ) -> Result<(Self, String), CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = whole_seconds(now - BACKDATE);
        let not_after = whole_seconds(now + ROOT_LIFETIME);
        params.not_after = not_after;
        params.serial_number = Some(serial()?.1);
        let key = key_type.generate().map_err(sign)?;
        let certificate = params.self_signed(&key).map_err(sign)?;
        let pem = certificate.pem();
        let organization = Some(trust_domain.to_string());
        let certificate = certificate.into();
        let not_after = not_after.into();
        let intermediates = Vec::new();
        Ok((Self { certificate, key, not_after, organization, intermediates }, pem))
    }

    /// An existing root. The error is the reason that makes it unusable, in words.
    pub fn parse(certificate: &str, key: &str, now: SystemTime) -> Result<Self, String> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| format!("its certificate is not PEM: {error}"))?;
        let key = parse_key(key)?;
        let facts = signer_facts(&certificate, &key, now)?;
        if !facts.self_signed {
            let why = "its certificate is not self-signed, and only roots are supported";
            return Err(why.to_owned());
        }
        let SignerFacts { not_after, organization, .. } = facts;
        Ok(Self { certificate, key, not_after, organization, intermediates: Vec::new() })
    }

    /// A CA below somebody else's root, as Istio's `cacerts`: its certificate and key, and the
    /// certificates from it (which may be repeated there) up to one of `roots`.
    pub fn plugged_in(
        certificate: &str,
        key: &str,
        chain: &str,
        roots: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<Self, String> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| format!("its certificate is not PEM: {error}"))?;
        let key = parse_key(key)?;
        let facts = signer_facts(&certificate, &key, now)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        let chain = chain.map_err(|error| format!("its chain is not PEM: {error}"))?;
        let mut intermediates = Vec::new();
        if !roots.contains(&certificate) {
            intermediates.push(certificate.clone());
        }
        // Whoever verifies has the roots.
        let above = chain.into_iter().filter(|it| *it != certificate && !roots.contains(it));
        intermediates.extend(above);
        let SignerFacts { not_after, organization, .. } = facts;
        Ok(Self { certificate, key, not_after, organization, intermediates })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// From here on nothing that this CA signed verifies.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The `O` of the certificate's subject: ours names the trust domain there.
    pub fn organization(&self) -> Option<&str> {
        self.organization.as_deref()
    }

    pub(crate) fn key_pem(&self) -> zeroize::Zeroizing<String> {
        self.key.serialize_pem().into()
    }

    /// A new key and its SVID for `id`, ending `lifetime` from now or with this CA, whichever comes
    /// first. The profile is Istio's (policy.md 6.2.9): critical key usage and URI SAN, no subject.
    pub fn issue(
        &self,
        id: &SpiffeId,
        key_type: KeyType,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Svid, CaError> {
        self.issue_named(Subject { id, dns_names: &[] }, key_type, lifetime, now)
    }

    /// As [`Self::issue`], with names for a server.
    pub fn issue_named(
        &self,
        subject: Subject<'_>,
        key_type: KeyType,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Svid, CaError> {
        let mut key = key_type.generate().map_err(sign)?;
        let signed = self.sign(&key, subject, lifetime, now);
        let key_der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        key.zeroize();
        let Signed { chain, serial, not_before, not_after } = signed?;
        Ok(Svid { id: subject.id.clone(), chain, key: key_der, serial, not_before, not_after })
    }

    /// A certificate for somebody else's key, of the same profile and lifetime as an SVID of
    /// [`Self::issue`]. Nothing but the key comes from who asked.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        Subject { id, dns_names }: Subject<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Signed, CaError> {
        if lifetime < Duration::from_secs(1) {
            return Err(CaError::Lifetime);
        }
        if id.path().is_empty() {
            return Err(CaError::NoWorkload(id.to_string()));
        }
        if now >= self.not_after {
            return Err(CaError::Sign("the CA's own certificate has expired".to_owned()));
        }
        let not_before = whole_seconds(now - BACKDATE);
        let not_after = whole_seconds((now + lifetime).min(self.not_after));
        let (serial, serial_number) = serial()?;

        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri =
            id.as_str().try_into().map_err(|_| CaError::Sign(format!("{id} is not ASCII")))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        for name in dns_names {
            let dns = name.as_str().try_into();
            let dns = dns.map_err(|_| CaError::Sign(format!("{name} is not ASCII")))?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before;
        params.not_after = not_after;
        params.serial_number = Some(serial_number);

        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(sign)?;
        let leaf = params.signed_by(key, &issuer).map_err(sign)?;
        let mut chain = vec![leaf.into()];
        chain.extend(self.intermediates.iter().cloned());
        let (not_before, not_after) = (not_before.into(), not_after.into());
        Ok(Signed { chain, serial, not_before, not_after })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// PKCS#8, or the older forms that `openssl` and `step` write.
fn parse_key(key: &str) -> Result<KeyPair, String> {
    let mut der = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| format!("its key is not a private key in PEM: {error}"))?;
    let parsed = KeyPair::try_from(&der);
    der.zeroize();
    parsed.map_err(|error| format!("its key is of no kind we can use: {error}"))
}

struct SignerFacts {
    not_after: SystemTime,
    organization: Option<String>,
    self_signed: bool,
}

fn signer_facts(
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
    now: SystemTime,
) -> Result<SignerFacts, String> {
    let (_, root) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("its certificate cannot be parsed: {error}"))?;
    if root.public_key().raw != key.subject_public_key_info() {
        return Err("its key is not the certificate's".to_owned());
    }
    let constraints = root.basic_constraints().map_err(|error| error.to_string())?;
    if !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err("its certificate is not a CA's (basic constraints)".to_owned());
    }
    let usage = root.key_usage().map_err(|error| error.to_string())?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its certificate may not sign others (key usage)".to_owned());
    }
    let self_signed = root.subject().as_raw() == root.issuer().as_raw();
    let not_before: SystemTime = root.validity().not_before.to_datetime().into();
    let not_after: SystemTime = root.validity().not_after.to_datetime().into();
    if now < not_before {
        let since = humantime::format_rfc3339_seconds(not_before);
        return Err(format!("it is valid from {since} only (is this host's clock right?)"));
    }
    if now >= not_after {
        return Err(format!("it expired at {}", humantime::format_rfc3339_seconds(not_after)));
    }
    let organization =
        root.subject().iter_organization().next().and_then(|o| o.as_str().ok()).map(str::to_owned);
    Ok(SignerFacts { not_after, organization, self_signed })
}

/// Certificates carry whole seconds.
fn whole_seconds(time: SystemTime) -> OffsetDateTime {
    let time = OffsetDateTime::from(time);
    time.replace_nanosecond(0).unwrap_or(time)
}

/// 128 random bits, kept positive; also as hex.
fn serial() -> Result<(String, SerialNumber), CaError> {
    let mut bytes: [u8; 16] = random_bytes().map_err(CaError::Sign)?;
    // Never zero, never a leading zero: every tool prints the same digits.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((hex, SerialNumber::from_slice(&bytes)))
}

fn sign(error: rcgen::Error) -> CaError {
    CaError::Sign(error.to_string())
}
