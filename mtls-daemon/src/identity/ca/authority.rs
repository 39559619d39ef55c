//! A signing certificate with its key, and the certificates it makes.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
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
}

impl Authority {
    /// A new root for `trust_domain`, valid for ten years; its certificate also as PEM.
    pub fn generate(
        trust_domain: &TrustDomain,
        key_type: KeyType,
        now: SystemTime,
    ) -> Result<(Self, String), CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
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
        Ok((Self { certificate, key, not_after: not_after.into(), organization }, pem))
    }

    /// An existing root. The error is the reason that makes it unusable, in words.
    pub fn parse(certificate: &str, key: &str, now: SystemTime) -> Result<Self, String> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| format!("its certificate is not PEM: {error}"))?;
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| format!("its key is not a PKCS#8 key in PEM: {error}"))?;
        let parsed = KeyPair::try_from(&der);
        der.zeroize();
        let key = parsed.map_err(|error| format!("its key is of no kind we can use: {error}"))?;
        let facts = root_facts(&certificate, &key, now)?;
        Ok(Self { certificate, key, not_after: facts.not_after, organization: facts.organization })
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

    pub(super) fn key_pem(&self) -> zeroize::Zeroizing<String> {
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
        if lifetime < Duration::from_secs(1) {
            return Err(CaError::Lifetime);
        }
        if id.path().is_empty() {
            return Err(CaError::NoWorkload(id.to_string()));
        }
        let not_before = whole_seconds(now - BACKDATE);
        let not_after = whole_seconds((now + lifetime).min(self.not_after));
        let (serial, serial_number) = serial()?;

        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri =
            id.as_str().try_into().map_err(|_| CaError::Sign(format!("{id} is not ASCII")))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
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
        let mut key = key_type.generate().map_err(sign)?;
        let leaf = params.signed_by(&key, &issuer).map_err(sign)?;
        let key_der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        key.zeroize();
        Ok(Svid {
            id: id.clone(),
            chain: vec![leaf.into()],
            key: key_der,
            serial,
            not_before: not_before.into(),
            not_after: not_after.into(),
        })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

struct RootFacts {
    not_after: SystemTime,
    organization: Option<String>,
}

fn root_facts(
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
    now: SystemTime,
) -> Result<RootFacts, String> {
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
    if root.subject().as_raw() != root.issuer().as_raw() {
        return Err("its certificate is not self-signed, and only roots are supported".to_owned());
    }
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
    Ok(RootFacts { not_after, organization })
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
