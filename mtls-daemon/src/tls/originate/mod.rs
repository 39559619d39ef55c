//! TLS for applications that speak plaintext: SIMPLE and MUTUAL (policy.md 2.3). The files of the
//! rules are read off the connection path, again when they change; a connection finds the
//! configuration ready, or the reason why there is none.

mod error;
pub(super) mod files;
mod verify;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::{ClientConfig, SupportedProtocolVersion, version};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use error::{FileError, OriginationError};
pub use files::Sources;

pub(super) use self::files::Stamp;
use self::verify::{EXPECTATION, Expectation, OwnCertificate, ServerVerifier};
use super::HandshakeError;
use super::connect::ClientStream;
use super::provider::provider;
use super::verify::TlsSummary;
use crate::policy::TlsSettings;

/// Servers outside the mesh choose: what both have of these.
static VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

type Ready = Result<Arc<ClientConfig>, FileError>;

/// What a rule's files were like when they were read.
type Stamps = HashMap<Sources, Vec<Option<Stamp>>>;

/// The configurations of all rules in force.
#[derive(Default)]
pub struct Originations {
    ready: ArcSwap<HashMap<Sources, Ready>>,
    /// Never held while a file is read: on a mount that hangs that takes for ever.
    stamps: Mutex<Stamps>,
}

/// Files that were looked at, and what they make.
type Look = (Sources, Vec<Option<Stamp>>, Ready);

impl Originations {
    /// Reads what `settings` name and is not read yet, and forgets everything else. Blocks; to be
    /// called before rules are in force, by one at a time.
    pub fn prepare<'s>(&self, settings: impl Iterator<Item = &'s TlsSettings>) {
        let wanted = settings.filter(|settings| settings.credential_name.is_none());
        let wanted: HashSet<Sources> = wanted.map(Sources::of).collect();
        let new: Vec<Sources> = {
            let mut stamps = self.stamps();
            stamps.retain(|known, _| wanted.contains(known));
            wanted.into_iter().filter(|sources| !stamps.contains_key(sources)).collect()
        };
        let look = |sources: Sources| {
            let (stamp, read) = (sources.stamp(), configuration(&sources));
            (sources, stamp, read)
        };
        let looks = new.into_iter().map(look).collect();
        self.put(&mut self.stamps(), looks);
    }

    /// Reads again the files that changed since, and those that could not be used. Blocks, on a mount
    /// that hangs for as long as it does: nothing else may wait for it.
    pub fn refresh(&self) {
        self.refresh_by(configuration);
    }

    fn refresh_by(&self, configuration: impl Fn(&Sources) -> Ready) {
        let (known, ready) = (self.stamps().clone(), self.ready.load_full());
        let mut looks = Vec::new();
        for (sources, before) in known {
            let now = sources.stamp();
            let same = now == before && now.iter().all(Option::is_some);
            if !same || ready.get(&sources).is_none_or(Result::is_err) {
                let read = configuration(&sources);
                looks.push((sources, now, read));
            }
        }
        if looks.is_empty() {
            return;
        }
        let mut stamps = self.stamps();
        // Forgotten meanwhile: nobody wants to know.
        looks.retain(|(sources, ..)| stamps.contains_key(sources));
        self.put(&mut stamps, looks);
    }

    fn put(&self, stamps: &mut Stamps, looks: Vec<Look>) {
        let before = self.ready.load();
        let mut ready = HashMap::clone(&before);
        ready.retain(|sources, _| stamps.contains_key(sources));
        for (sources, stamp, read) in looks {
            tell(before.get(&sources), &read);
            stamps.insert(sources.clone(), stamp);
            ready.insert(sources, read);
        }
        self.ready.store(Arc::new(ready));
    }

    fn stamps(&self) -> MutexGuard<'_, Stamps> {
        // Stamps have no half-done state.
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shakes hands as `settings` say, asking for `name`, and for HTTP/2 alone where `http2` is meant.
    /// Not bounded in time: the caller does that.
    pub async fn connect(
        &self,
        stream: TcpStream,
        settings: &TlsSettings,
        name: &str,
        http2: bool,
    ) -> Result<(ClientStream, TlsSummary), OriginationError> {
        let config = self.configuration(settings)?;
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| OriginationError::Unusable(format!("{name:?} is no server name")))?;
        let names: Arc<[Arc<str>]> = match settings.subject_alt_names.as_slice() {
            [] => [name.into()].into(),
            names => names.into(),
        };
        let expectation =
            Expectation { names, refusal: RefCell::new(None), asked: Cell::new(false) };
        // Otherwise nothing: the application's bytes are passed on, and it has agreed on no protocol.
        let alpn = if http2 { vec![b"h2".to_vec()] } else { Vec::new() };
        let shake = async {
            let connector = TlsConnector::from(config);
            let result = connector.with_alpn(alpn).connect(server, stream).await;
            let learned = EXPECTATION.with(|it| (it.refusal.take(), it.asked.get()));
            (result, learned)
        };
        match EXPECTATION.scope(expectation, shake).await {
            (Ok(stream), _) => {
                let summary = TlsSummary::of(stream.get_ref().1);
                Ok((stream, summary))
            }
            (Err(_), (Some(refusal), _)) => Err(refusal),
            (Err(error), (None, asked)) => {
                Err(judge(settings, HandshakeError::from_io(error), asked))
            }
        }
    }

    fn configuration(&self, settings: &TlsSettings) -> Result<Arc<ClientConfig>, OriginationError> {
        if let Some(name) = &settings.credential_name {
            return Err(OriginationError::NoCredential(name.clone()));
        }
        match self.ready.load().get(&Sources::of(settings)) {
            Some(Ok(config)) => Ok(config.clone()),
            Some(Err(error)) => Err(error.clone().into()),
            None => Err(OriginationError::Handshake(HandshakeError::Own(
                "the rule's files are not read yet".to_owned(),
            ))),
        }
    }

    /// What the settings lack right now, without a connection.
    pub fn problem(&self, settings: &TlsSettings) -> Option<OriginationError> {
        self.configuration(settings).err()
    }
}

/// The server's answer to our certificate, which in TLS 1.3 comes after the handshake.
pub fn late_refusal(settings: &TlsSettings, error: HandshakeError) -> OriginationError {
    judge(settings, error, false)
}

fn judge(settings: &TlsSettings, error: HandshakeError, asked: bool) -> OriginationError {
    let sources = Sources::of(settings);
    match (error, sources.certificate()) {
        (HandshakeError::OurCertificate { .. }, None) => OriginationError::CertificateRequired,
        // TLS 1.2 has no alert for it.
        (HandshakeError::Peer(_), None) if asked => OriginationError::CertificateRequired,
        (HandshakeError::OurCertificate { alert, .. }, Some(path)) => {
            OriginationError::CertificateRefused { path: path.clone(), alert }
        }
        (error, _) => OriginationError::Handshake(error),
    }
}

fn configuration(sources: &Sources) -> Ready {
    let mut material = sources.read()?;
    let algorithms = provider().signature_verification_algorithms;
    let verifier = Arc::new(ServerVerifier::new(&mut material, algorithms));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| FileError {
            field: "tls",
            path: "".into(),
            why: format!("no version of TLS can be spoken: {error}"),
        })?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(OwnCertificate(material.client)));
    // It depends on the port.
    config.alpn_protocols = Vec::new();
    // A resumed session would outlive a change of the files.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

fn tell(old: Option<&Ready>, new: &Ready) {
    match (old, new) {
        (Some(Err(old)), Err(new)) if old == new => {}
        (_, Err(error)) => {
            tracing::warn!("TLS is not originated, connections are refused: {error}");
        }
        (Some(Err(_)), Ok(_)) => tracing::info!("a rule's TLS files can be used again"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::TlsMode;

    fn simple(roots: &str) -> TlsSettings {
        TlsSettings {
            mode: TlsMode::Simple,
            client_certificate: None,
            private_key: None,
            ca_certificates: Some(roots.into()),
            ca_crl: None,
            credential_name: None,
            sni: None,
            subject_alt_names: Vec::new(),
            insecure_skip_verify: false,
        }
    }

    #[test]
    fn rules_change_while_a_file_is_being_read() {
        let originations = Originations::default();
        let (slow, other) = (simple("/no/such/slow.pem"), simple("/no/such/other.pem"));
        originations.prepare([&slow].into_iter());
        originations.refresh_by(|sources| {
            assert!(originations.stamps.try_lock().is_ok(), "others wait for this file");
            originations.prepare([&other].into_iter());
            configuration(sources)
        });
        let known = |settings| originations.ready.load().contains_key(&Sources::of(settings));
        assert!(known(&other) && !known(&slow), "it was forgotten meanwhile");
    }
}
