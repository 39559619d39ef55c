//! Certificates that a row describes instead of bringing them.

use anyhow::{Context, Result, anyhow, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use time::OffsetDateTime;

/// A certificate with its key, to sign others with.
pub(super) struct Signer {
    pub certificate: CertificateDer<'static>,
    pub key: KeyPair,
}

impl Signer {
    /// A self-signed root. All have one name, so that only their keys tell them apart.
    pub fn root() -> Result<Self> {
        let mut params = ca();
        params.distinguished_name.push(DnType::OrganizationName, "SPIFFE");
        let key = KeyPair::generate()?;
        Ok(Self { certificate: params.self_signed(&key)?.into(), key })
    }

    pub fn sign(&self, params: &CertificateParams) -> Result<Self> {
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        Ok(Self { certificate: params.signed_by(&key, &issuer)?.into(), key })
    }
}

/// A leaf without names, or a CA: valid from an hour ago, for two.
fn blank() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    params.not_before = now - std::time::Duration::from_secs(3600);
    params.not_after = now + std::time::Duration::from_secs(3600);
    params
}

pub(super) fn svid() -> CertificateParams {
    let mut params = blank();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

pub(super) fn ca() -> CertificateParams {
    let mut params = blank();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// `uri_sans`, `dns_sans`, `ca`, `key_usage` and `ext_key_usage` of one leaf.
pub(super) fn leaf(recipe: &Value) -> Result<Vec<CertificateDer<'static>>> {
    let mut params = svid();
    for (name, value) in recipe.as_object().context("a recipe is an object")? {
        match name.as_str() {
            "uri_sans" => params.subject_alt_names.extend(uris(value)?),
            "dns_sans" => {
                let names =
                    texts(value)?.into_iter().map(|name| Ok(SanType::DnsName(name.try_into()?)));
                params.subject_alt_names.extend(names.collect::<Result<Vec<_>>>()?);
            }
            "ca" if value == true => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "ca" => params.is_ca = IsCa::ExplicitNoCa,
            "key_usage" => params.key_usages = key_usages(value)?,
            "ext_key_usage" => params.extended_key_usages = extended_key_usages(value)?,
            other => bail!("a recipe with the unknown field `{other}`"),
        }
    }
    let root = Signer::root()?;
    Ok(vec![root.sign(&params)?.certificate])
}

pub(super) fn uris(value: &Value) -> Result<Vec<SanType>> {
    texts(value)?.into_iter().map(uri).collect()
}

pub(super) fn uri(text: &str) -> Result<SanType> {
    Ok(SanType::URI(text.try_into()?))
}

/// A text, or a list of them; null has none.
pub(super) fn texts(value: &Value) -> Result<Vec<&str>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![text]),
        Value::Array(list) => {
            list.iter().map(|it| it.as_str().ok_or_else(|| anyhow!("{it} is no text"))).collect()
        }
        other => bail!("{other} is no list of texts"),
    }
}

pub(super) fn key_usages(value: &Value) -> Result<Vec<KeyUsagePurpose>> {
    let usage = |name| {
        Ok(match name {
            "digitalSignature" => KeyUsagePurpose::DigitalSignature,
            "nonRepudiation" | "contentCommitment" => KeyUsagePurpose::ContentCommitment,
            "keyEncipherment" => KeyUsagePurpose::KeyEncipherment,
            "dataEncipherment" => KeyUsagePurpose::DataEncipherment,
            "keyAgreement" => KeyUsagePurpose::KeyAgreement,
            "keyCertSign" => KeyUsagePurpose::KeyCertSign,
            "cRLSign" => KeyUsagePurpose::CrlSign,
            "encipherOnly" => KeyUsagePurpose::EncipherOnly,
            "decipherOnly" => KeyUsagePurpose::DecipherOnly,
            other => bail!("{other:?} is no key usage"),
        })
    };
    texts(value)?.into_iter().map(usage).collect()
}

fn extended_key_usages(value: &Value) -> Result<Vec<ExtendedKeyUsagePurpose>> {
    let usage = |name| {
        Ok(match name {
            "serverAuth" => ExtendedKeyUsagePurpose::ServerAuth,
            "clientAuth" => ExtendedKeyUsagePurpose::ClientAuth,
            "codeSigning" => ExtendedKeyUsagePurpose::CodeSigning,
            "emailProtection" => ExtendedKeyUsagePurpose::EmailProtection,
            "anyExtendedKeyUsage" => ExtendedKeyUsagePurpose::Any,
            other => bail!("{other:?} is no extended key usage"),
        })
    };
    texts(value)?.into_iter().map(usage).collect()
}
