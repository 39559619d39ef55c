//! The rules that make certificates an X.509 SVID (X509-SVID §2, §4, §5.2; policy.md 6.2), apart from
//! who signed what.

use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use x509_parser::asn1_rs::Any;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate, X509Extension};

use super::refusal::Refusal;
use super::subject;
use crate::identity::SpiffeId;

/// How much of a name that is no SPIFFE ID reaches a log.
const SHOWN: usize = 120;

/// The most certificates in a chain, leaf included. Real ones have two or three, and looking for a
/// path through many is work that a stranger would choose for us.
pub(super) const MAX_CHAIN: usize = 16;

/// What a leaf that keeps the rules says.
pub(super) struct Leaf {
    pub(super) id: SpiffeId,
    /// In the form of RFC 2253; empty for Istio's SVIDs.
    pub(super) subject: String,
    pub(super) dns_names: Vec<String>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Lower-case hex.
    pub(super) serial: String,
    /// An extension that should be critical is not. What it says is plain all the same, so that it can
    /// be read; whoever is shown it refuses it.
    not_critical: Option<Refusal>,
}

impl Leaf {
    /// As peers see it.
    pub(super) fn strict(self) -> Result<Self, Refusal> {
        match self.not_critical {
            Some(refusal) => Err(refusal),
            None => Ok(self),
        }
    }

    /// Why peers refuse it, although it can be read.
    pub(super) fn not_critical(&self) -> Option<&Refusal> {
        self.not_critical.as_ref()
    }
}

/// A chain as its owner holds it, leaf first: all of its certificates keep the rules, but for what
/// [`Leaf::strict`] adds.
pub(super) fn chain(chain: &[CertificateDer<'_>]) -> Result<Leaf, Refusal> {
    let (first, signers) = chain.split_first().ok_or(Refusal::NoCertificate)?;
    check_length(chain.len())?;
    let found = read(first)?;
    for der in signers {
        signer(der).map_err(|why| Refusal::Signer { id: found.id.clone(), why })?;
    }
    Ok(found)
}

pub(super) fn check_length(certificates: usize) -> Result<(), Refusal> {
    match certificates {
        0..=MAX_CHAIN => Ok(()),
        _ => Err(Refusal::ChainLength(certificates)),
    }
}

/// A leaf as its peers see it.
pub(super) fn leaf(der: &[u8]) -> Result<Leaf, Refusal> {
    read(der)?.strict()
}

fn read(der: &[u8]) -> Result<Leaf, Refusal> {
    let certificate = certificate(der).map_err(Refusal::Unreadable)?;
    let extensions = Extensions::of(&certificate).map_err(Refusal::Unreadable)?;
    let id = extensions.workload()?;
    if extensions.is_ca() {
        return Err(Refusal::Ca(id));
    }
    let key_usage_critical = extensions.check_key_usage(&id)?;
    extensions.check_extended_key_usage(&id)?;
    let no_subject = certificate.subject().iter_rdn().next().is_none();
    let names_critical = extensions.names.is_some_and(|names| names.critical);
    let not_critical = if !key_usage_critical {
        Some(Refusal::KeyUsage { id: id.clone(), why: "is not critical" })
    } else if no_subject && !names_critical {
        Some(Refusal::NamesNotCritical(id.clone()))
    } else {
        None
    };
    Ok(Leaf {
        not_critical,
        subject: subject::rfc2253(certificate.subject()),
        dns_names: extensions.dns_names(),
        serial: certificate.serial.to_str_radix(16),
        not_before: certificate.validity().not_before.to_datetime().into(),
        not_after: certificate.validity().not_after.to_datetime().into(),
        id,
    })
}

/// A certificate between the leaf and an anchor: a CA's, which may sign certificates (X509-SVID §4.1,
/// §4.3). Its SPIFFE ID, if it has one, plays no part: nobody can be it. The error says what it is
/// instead.
pub(super) fn signer(der: &[u8]) -> Result<(), String> {
    let certificate = certificate(der)?;
    let extensions = Extensions::of(&certificate)?;
    if !extensions.is_ca() {
        return Err("is not a CA's (basic constraints)".to_owned());
    }
    match extensions.key_usage.map(X509Extension::parsed_extension) {
        Some(ParsedExtension::KeyUsage(usage)) if usage.key_cert_sign() => Ok(()),
        Some(_) => Err("has a key usage without keyCertSign".to_owned()),
        None => Err("has no key usage, and a signer's has keyCertSign".to_owned()),
    }
}

/// As DER has it.
pub(super) fn public_key(der: &[u8]) -> Option<SubjectPublicKeyInfoDer<'static>> {
    Some(certificate(der).ok()?.public_key().raw.to_vec().into())
}

/// Which key signed it, as the certificate itself says. It chooses among lists, and proves nothing.
pub(super) fn authority_key_id(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = certificate(der).ok()?;
    certificate.extensions().iter().find_map(|it| match it.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => Some(id.key_identifier.as_ref()?.0.to_vec()),
        _ => None,
    })
}

fn certificate(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("has bytes after its end".to_owned()),
        Err(error) => Err(format!("cannot be parsed: {error}")),
    }
}

/// The extensions that the rules speak of; each at most once, each parsed.
#[derive(Default)]
struct Extensions<'a> {
    names: Option<&'a X509Extension<'a>>,
    basic_constraints: Option<&'a X509Extension<'a>>,
    key_usage: Option<&'a X509Extension<'a>>,
    extended_key_usage: Option<&'a X509Extension<'a>>,
}

impl<'a> Extensions<'a> {
    fn of(certificate: &'a X509Certificate<'a>) -> Result<Self, String> {
        let mut found = Self::default();
        for extension in certificate.extensions() {
            let place = match extension.parsed_extension() {
                // Unreadable is not absent: an attacker would choose what we cannot read.
                ParsedExtension::ParseError { error } => {
                    return Err(format!(
                        "has an extension ({}) that cannot be parsed: {error}",
                        extension.oid
                    ));
                }
                ParsedExtension::SubjectAlternativeName(_) => &mut found.names,
                ParsedExtension::BasicConstraints(_) => &mut found.basic_constraints,
                ParsedExtension::KeyUsage(_) => &mut found.key_usage,
                ParsedExtension::ExtendedKeyUsage(_) => &mut found.extended_key_usage,
                // Of no meaning for an SVID; an unknown critical one fails the chain.
                _ => continue,
            };
            // The parser stops where the value ends: what follows would be read by others.
            if !Any::from_der(extension.value).is_ok_and(|(rest, _)| rest.is_empty()) {
                return Err(format!(
                    "has an extension ({}) with bytes after its end",
                    extension.oid
                ));
            }
            if place.replace(extension).is_some() {
                return Err(format!("has an extension ({}) twice", extension.oid));
            }
        }
        Ok(found)
    }

    fn names(&self) -> &[GeneralName<'a>] {
        match self.names.map(X509Extension::parsed_extension) {
            Some(ParsedExtension::SubjectAlternativeName(names)) => &names.general_names,
            _ => &[],
        }
    }

    fn dns_names(&self) -> Vec<String> {
        let names = self.names().iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        names.collect()
    }

    fn workload(&self) -> Result<SpiffeId, Refusal> {
        let mut uris = Vec::new();
        for name in self.names() {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::Invalid(tag, _) => {
                    let why = format!("has an alternative name of the unknown kind {}", tag.0);
                    return Err(Refusal::Unreadable(why));
                }
                _ => {}
            }
        }
        let [uri] = uris[..] else { return Err(Refusal::UriNames(uris.len())) };
        let id = SpiffeId::parse(uri).map_err(|error| Refusal::NotSpiffe {
            uri: uri.chars().take(SHOWN).collect(),
            why: error.to_string(),
        })?;
        if id.path().is_empty() {
            return Err(Refusal::NoPath(id));
        }
        Ok(id)
    }

    fn is_ca(&self) -> bool {
        match self.basic_constraints.map(X509Extension::parsed_extension) {
            Some(ParsedExtension::BasicConstraints(constraints)) => constraints.ca,
            _ => false,
        }
    }

    /// Whether it is critical.
    fn check_key_usage(&self, id: &SpiffeId) -> Result<bool, Refusal> {
        let refuse = |why| Err(Refusal::KeyUsage { id: id.clone(), why });
        let Some(extension) = self.key_usage else { return refuse("is missing") };
        let ParsedExtension::KeyUsage(usage) = extension.parsed_extension() else {
            return refuse("is missing");
        };
        if !usage.digital_signature() {
            return refuse("lacks digitalSignature");
        }
        if usage.key_cert_sign() || usage.crl_sign() {
            return refuse("has keyCertSign or cRLSign, a CA's");
        }
        Ok(extension.critical)
    }

    fn check_extended_key_usage(&self, id: &SpiffeId) -> Result<(), Refusal> {
        match self.extended_key_usage.map(X509Extension::parsed_extension) {
            Some(ParsedExtension::ExtendedKeyUsage(usage))
                if !usage.server_auth || !usage.client_auth =>
            {
                Err(Refusal::ExtendedKeyUsage(id.clone()))
            }
            _ => Ok(()),
        }
    }
}
