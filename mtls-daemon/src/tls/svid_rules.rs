//! The rules that make a certificate an X.509 SVID (X509-SVID §2, §4, §5.2), apart from its chain.

use std::time::SystemTime;

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_KEY_USAGE;
use x509_parser::prelude::{FromDer, X509Certificate, X509Extension};

use super::refusal::Refusal;
use super::subject;
use crate::identity::SpiffeId;

/// How much of a name that is no SPIFFE ID reaches a log.
const SHOWN: usize = 120;

/// What a leaf that keeps the rules says.
pub(super) struct Leaf {
    pub(super) id: SpiffeId,
    /// In the form of RFC 2253; empty for Istio's SVIDs.
    pub(super) subject: String,
    pub(super) dns_names: Vec<String>,
    pub(super) not_after: SystemTime,
}

pub(super) fn leaf(der: &[u8]) -> Result<Leaf, Refusal> {
    let certificate = match X509Certificate::from_der(der) {
        Ok(([], certificate)) => certificate,
        Ok(_) => return Err(Refusal::Unreadable("bytes follow the certificate".to_owned())),
        Err(error) => return Err(Refusal::Unreadable(error.to_string())),
    };
    let extensions = Extensions::of(&certificate)?;
    let id = extensions.workload()?;
    extensions.check_no_ca(&id)?;
    extensions.check_key_usage(&id)?;
    extensions.check_extended_key_usage(&id)?;
    let no_subject = certificate.subject().iter_rdn().next().is_none();
    if no_subject && !extensions.names.is_some_and(|names| names.critical) {
        return Err(Refusal::NamesNotCritical(id));
    }
    Ok(Leaf {
        subject: subject::rfc2253(certificate.subject()),
        dns_names: extensions.dns_names(),
        not_after: certificate.validity().not_after.to_datetime().into(),
        id,
    })
}

/// A certificate between the leaf and an anchor, whose basic constraints webpki has checked: its key
/// usage, if it has one, must let it sign certificates (X509-SVID §4.3, RFC 5280 §6.1.4 n). The error
/// says what it is instead.
pub(super) fn signer(der: &[u8]) -> Result<(), &'static str> {
    let Ok(([], certificate)) = X509Certificate::from_der(der) else {
        return Err("cannot be parsed");
    };
    let mut usages =
        certificate.extensions().iter().filter(|it| it.oid == OID_X509_EXT_KEY_USAGE).peekable();
    while let Some(usage) = usages.next() {
        match usage.parsed_extension() {
            // Unreadable is not absent.
            ParsedExtension::KeyUsage(_) if usages.peek().is_some() => {
                return Err("has two key usages");
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() => {}
            ParsedExtension::KeyUsage(_) => return Err("has a key usage without keyCertSign"),
            _ => return Err("has a key usage that cannot be parsed"),
        }
    }
    Ok(())
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
    fn of(certificate: &'a X509Certificate<'a>) -> Result<Self, Refusal> {
        let mut found = Self::default();
        for extension in certificate.extensions() {
            let place = match extension.parsed_extension() {
                // Unreadable is not absent: an attacker would choose what we cannot read.
                ParsedExtension::ParseError { error } => {
                    let why = format!("extension {}: {error}", extension.oid);
                    return Err(Refusal::Unreadable(why));
                }
                ParsedExtension::SubjectAlternativeName(_) => &mut found.names,
                ParsedExtension::BasicConstraints(_) => &mut found.basic_constraints,
                ParsedExtension::KeyUsage(_) => &mut found.key_usage,
                ParsedExtension::ExtendedKeyUsage(_) => &mut found.extended_key_usage,
                // Of no meaning for an SVID; an unknown critical one fails the chain.
                _ => continue,
            };
            if place.replace(extension).is_some() {
                let why = format!("extension {} is there twice", extension.oid);
                return Err(Refusal::Unreadable(why));
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
                    return Err(Refusal::Unreadable(format!("alternative name of kind {}", tag.0)));
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

    fn check_no_ca(&self, id: &SpiffeId) -> Result<(), Refusal> {
        match self.basic_constraints.map(X509Extension::parsed_extension) {
            Some(ParsedExtension::BasicConstraints(constraints)) if constraints.ca => {
                Err(Refusal::Ca(id.clone()))
            }
            _ => Ok(()),
        }
    }

    fn check_key_usage(&self, id: &SpiffeId) -> Result<(), Refusal> {
        let refuse = |why| Err(Refusal::KeyUsage { id: id.clone(), why });
        let Some(extension) = self.key_usage else { return refuse("is missing") };
        let ParsedExtension::KeyUsage(usage) = extension.parsed_extension() else {
            return refuse("is missing");
        };
        if !extension.critical {
            return refuse("is not critical");
        }
        if !usage.digital_signature() {
            return refuse("lacks digitalSignature");
        }
        if usage.key_cert_sign() || usage.crl_sign() {
            return refuse("has keyCertSign or cRLSign, a CA's");
        }
        Ok(())
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
