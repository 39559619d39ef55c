//! The `tls` of a traffic policy: how a client speaks TLS (policy.md 2.3).

use std::sync::Arc;

use super::error::{Code, Report};
use super::field::{Field, Fields};
use super::host;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Plaintext.
    Disable,
    /// TLS originated for the application, the server verified.
    Simple,
    /// The same with a client certificate of the user's own.
    Mutual,
    /// mTLS as the workload.
    IstioMutual,
}

impl TlsMode {
    /// As Istio writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::Simple => "SIMPLE",
            Self::Mutual => "MUTUAL",
            Self::IstioMutual => "ISTIO_MUTUAL",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    pub mode: TlsMode,
    /// Files of PEM, with MUTUAL alone.
    pub client_certificate: Option<Arc<str>>,
    pub private_key: Option<Arc<str>>,
    /// With SIMPLE and MUTUAL. None: the system's CAs.
    pub ca_certificates: Option<Arc<str>>,
    pub ca_crl: Option<Arc<str>>,
    /// A Kubernetes Secret in place of the files. Read, and refused where it is used: there is no
    /// Kubernetes to ask.
    pub credential_name: Option<Arc<str>>,
    pub sni: Option<Arc<str>>,
    /// Replace the identities that secure naming expects (policy.md 2.5), or the name that a
    /// server outside the mesh must prove. Empty: not set.
    pub subject_alt_names: Vec<Arc<str>>,
    pub insecure_skip_verify: bool,
}

impl TlsSettings {
    pub fn read(field: &Field<'_>, report: &mut Report) -> Option<Self> {
        let mut fields = field.fields(report)?;
        let mode = read_mode(field, &mut fields, report)?;
        let sni = fields.take(report, "sni").and_then(|f| read_sni(&f, report));
        let subject_alt_names: Vec<Arc<str>> = fields
            .take(report, "subjectAltNames")
            .map(|f| f.texts(report).into_iter().map(|(_, text)| text.into()).collect())
            .unwrap_or_default();
        let mut settings = Self {
            mode,
            client_certificate: None,
            private_key: None,
            ca_certificates: None,
            ca_crl: None,
            credential_name: None,
            sni,
            subject_alt_names,
            insecure_skip_verify: false,
        };
        match mode {
            TlsMode::Disable => {
                fields.ignore(report, &CERTIFICATES);
                fields.ignore(report, &["insecureSkipVerify"]);
            }
            TlsMode::IstioMutual => refuse_certificate_fields(&mut fields, report),
            TlsMode::Simple | TlsMode::Mutual => settings.read_own(field, &mut fields, report),
        }
        fields.finish(report);
        Some(settings)
    }

    /// What SIMPLE and MUTUAL have besides names.
    fn read_own(&mut self, field: &Field<'_>, fields: &mut Fields<'_>, report: &mut Report) {
        let mut text = |name| {
            let text = fields.take(report, name)?.string(report)?;
            (!text.is_empty()).then(|| Arc::<str>::from(text))
        };
        self.client_certificate = text("clientCertificate");
        self.private_key = text("privateKey");
        self.ca_certificates = text("caCertificates");
        self.ca_crl = text("caCrl");
        self.credential_name = text("credentialName");
        self.insecure_skip_verify = fields
            .take(report, "insecureSkipVerify")
            .and_then(|f| f.boolean(report))
            .unwrap_or_default();
        for reason in self.contradictions() {
            field.error(report, Code::FieldValue, reason);
        }
        if self.mode == TlsMode::Simple && self.credential_name.is_none() {
            for (name, file) in
                [("clientCertificate", &self.client_certificate), ("privateKey", &self.private_key)]
            {
                if file.is_some() {
                    let reason = format!("{name} is not used: SIMPLE shows none, MUTUAL does");
                    field.warn(report, Code::WarnIgnored, reason);
                }
            }
            (self.client_certificate, self.private_key) = (None, None);
        }
    }

    fn contradictions(&self) -> Vec<&'static str> {
        let files = [&self.client_certificate, &self.private_key, &self.ca_certificates];
        let with_file = files.into_iter().chain([&self.ca_crl]).any(Option::is_some);
        let named = self.credential_name.is_some();
        let mutual = self.mode == TlsMode::Mutual;
        let skip = self.insecure_skip_verify;
        [
            (
                named && with_file,
                "credentialName brings certificates of its own: leave out clientCertificate, \
                 privateKey, caCertificates and caCrl",
            ),
            (
                mutual && !named && self.client_certificate.is_none(),
                "MUTUAL needs clientCertificate",
            ),
            (mutual && !named && self.private_key.is_none(), "MUTUAL needs privateKey"),
            (
                skip && self.ca_certificates.is_some(),
                "insecureSkipVerify asks nothing of the server: leave out caCertificates",
            ),
            (
                skip && !self.subject_alt_names.is_empty(),
                "insecureSkipVerify asks nothing of the server: leave out subjectAltNames",
            ),
            // A MUTUAL credential may hold the client's certificate alone.
            (
                skip && named && !mutual,
                "insecureSkipVerify asks nothing of the server: leave out credentialName",
            ),
        ]
        .into_iter()
        .filter_map(|(wrong, reason)| wrong.then_some(reason))
        .collect()
    }
}

/// Istio reads a missing mode as DISABLE: plaintext by omission is refused here.
fn read_mode(field: &Field<'_>, fields: &mut Fields<'_>, report: &mut Report) -> Option<TlsMode> {
    let Some(mode) = fields.take(report, "mode") else {
        if !fields.has("mode") {
            field.error(
                report,
                Code::FieldMissing,
                "mode is required: DISABLE for plaintext, ISTIO_MUTUAL for mesh mTLS, SIMPLE or \
                 MUTUAL for TLS to a server outside the mesh",
            );
        }
        return None;
    };
    let modes = [TlsMode::Disable, TlsMode::Simple, TlsMode::Mutual, TlsMode::IstioMutual];
    let text = mode.string(report)?;
    let found = modes.into_iter().find(|mode| mode.as_str() == text);
    if found.is_none() {
        let reason = format!("{text:?} is not one of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL");
        mode.error(report, Code::FieldValue, reason);
    }
    found
}

fn read_sni(field: &Field<'_>, report: &mut Report) -> Option<Arc<str>> {
    let text = field.string(report)?;
    if text.is_empty() {
        return None;
    }
    if !host::is_dns_name(text) {
        field.error(report, Code::FieldValue, format!("{text:?} is not a DNS name"));
        return None;
    }
    Some(text.into())
}

const CERTIFICATES: [&str; 5] =
    ["clientCertificate", "privateKey", "caCertificates", "credentialName", "caCrl"];

/// ISTIO_MUTUAL uses the mesh's certificates: naming others contradicts it (policy.md 2.3).
fn refuse_certificate_fields(fields: &mut Fields<'_>, report: &mut Report) {
    for name in CERTIFICATES {
        if let Some(field) = fields.take(report, name)
            && field.string(report).is_some_and(|text| !text.is_empty())
        {
            field.error(report, Code::FieldValue, "must be empty with ISTIO_MUTUAL");
        }
    }
    if let Some(field) = fields.take(report, "insecureSkipVerify")
        && field.boolean(report) == Some(true)
    {
        field.error(report, Code::FieldValue, "cannot be used with ISTIO_MUTUAL");
    }
}
