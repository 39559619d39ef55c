//! A certificate's subject in RFC 2253's form, as Envoy prints it (policy.md 5.1).

use std::fmt::Write;

use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The most specific name first; empty for no subject.
pub(super) fn rfc2253(subject: &X509Name<'_>) -> String {
    let mut names: Vec<String> = subject
        .iter_rdn()
        .map(|name| name.iter().map(attribute).collect::<Vec<_>>().join("+"))
        .collect();
    names.reverse();
    names.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type();
    let name = match oid2abbrev(kind, oid_registry()) {
        Ok("Email") => "emailAddress".to_owned(),
        Ok(name) => name.to_owned(),
        Err(_) => kind.to_id_string(),
    };
    match attribute.as_str() {
        Ok(value) => format!("{name}={}", escaped(value)),
        Err(_) => {
            let hex = attribute.attr_value().data.iter().map(|byte| format!("{byte:02X}"));
            format!("{name}=#{}", hex.collect::<String>())
        }
    }
}

/// RFC 2253 §2.4. What is no visible ASCII is written as its bytes.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => write!(out, "\\{byte:02X}").expect("writing to a String does not fail"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::{escaped, rfc2253};

    #[test]
    fn a_subject_is_written_as_envoy_writes_it() {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CountryName, "US");
        subject.push(DnType::OrganizationName, "Acme, Inc.");
        subject.push(DnType::CommonName, "client");
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let (_, certificate) = X509Certificate::from_der(certificate.der()).expect("one");
        assert_eq!(rfc2253(certificate.subject()), "CN=client,O=Acme\\, Inc.,C=US");
        assert_eq!(escaped(" #a\"b\\ "), "\\ #a\\\"b\\\\\\ ");
        assert_eq!(escaped("#\r\u{e9}"), "\\#\\0D\\C3\\A9");
    }
}
