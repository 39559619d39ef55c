//! The TLS settings that a client ends up with for a service as a whole, before any endpoint is
//! chosen (policy.md 2.3, 2.4.1).

use std::sync::Arc;

use super::client_tls::{TlsMode, TlsSettings};
use super::{Mode, auto};

/// What a client knows about a service and itself.
#[derive(Debug, Clone, Default)]
pub struct Upstream {
    /// The identities behind the service.
    pub names: Vec<Arc<str>>,
    pub sni: Option<Arc<str>>,
    pub auto_mtls: bool,
    pub external: bool,
    /// The service's mode. None: not known.
    pub mode: Option<Mode>,
    /// Where the client's own mesh identity lies in files: it is then shown from there.
    pub identity_files: Option<IdentityFiles>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    pub certificate: Arc<str>,
    pub key: Arc<str>,
    pub ca: Arc<str>,
}

impl Upstream {
    /// None: no TLS.
    pub fn settings(&self, rule: Option<&TlsSettings>) -> Option<TlsSettings> {
        let Some(rule) = rule else {
            let mode = self.mode.filter(|_| !self.external);
            return auto::applies(self.auto_mtls, mode)
                .then(|| self.mesh(self.names.clone(), self.sni.clone()));
        };
        match rule.mode {
            TlsMode::Disable => None,
            TlsMode::Simple => Some(rule.clone()),
            // The files are an identity of the mesh, and no credential for anybody outside.
            TlsMode::Mutual if self.external || self.identity_files.is_none() => Some(rule.clone()),
            TlsMode::Mutual => Some(self.mesh(rule.subject_alt_names.clone(), rule.sni.clone())),
            TlsMode::IstioMutual => {
                let own = !rule.subject_alt_names.is_empty();
                let names = if own { &rule.subject_alt_names } else { &self.names };
                Some(self.mesh(names.clone(), rule.sni.clone().or_else(|| self.sni.clone())))
            }
        }
    }

    fn mesh(&self, names: Vec<Arc<str>>, sni: Option<Arc<str>>) -> TlsSettings {
        let files = self.identity_files.as_ref().filter(|_| !self.external);
        TlsSettings {
            mode: if files.is_some() { TlsMode::Mutual } else { TlsMode::IstioMutual },
            client_certificate: files.map(|files| files.certificate.clone()),
            private_key: files.map(|files| files.key.clone()),
            ca_certificates: files.map(|files| files.ca.clone()),
            ca_crl: None,
            credential_name: None,
            sni,
            subject_alt_names: names,
            insecure_skip_verify: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(mode: TlsMode) -> TlsSettings {
        TlsSettings { mode, ..Upstream::default().mesh(Vec::new(), None) }
    }

    #[test]
    fn rule_2_3_the_rule_decides_and_its_names_replace_the_services() {
        let service = Upstream {
            names: vec!["spiffe://td/ns/a/sa/b".into()],
            sni: Some("default".into()),
            ..Upstream::default()
        };
        assert_eq!(service.settings(Some(&rule(TlsMode::Disable))), None);
        let simple = rule(TlsMode::Simple);
        assert_eq!(service.settings(Some(&simple)), Some(simple));
        let mutual = service.settings(Some(&rule(TlsMode::IstioMutual))).unwrap();
        assert_eq!((mutual.subject_alt_names, mutual.sni), (service.names, service.sni));
    }

    #[test]
    fn rule_2_4_1_auto_mtls_needs_a_service_of_the_mesh_whose_mode_is_known() {
        let service =
            Upstream { auto_mtls: true, mode: Some(Mode::Permissive), ..Upstream::default() };
        assert_eq!(service.settings(None).map(|s| s.mode), Some(TlsMode::IstioMutual));
        for none in [
            Upstream { auto_mtls: false, ..service.clone() },
            Upstream { external: true, ..service.clone() },
            Upstream { mode: None, ..service.clone() },
            Upstream { mode: Some(Mode::Disable), ..service.clone() },
        ] {
            assert_eq!(none.settings(None), None, "{none:?}");
        }
    }
}
