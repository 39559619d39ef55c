//! TLS for applications that speak plaintext: SIMPLE and MUTUAL (policy.md 2.3). The files of the
//! rules are read off the connection path, again when they change; a connection finds the
//! configuration ready, or the reason why there is none.

mod error;
pub(super) mod files;
mod verify;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

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

/// The configurations of all rules in force.
#[derive(Default)]
pub struct Originations {
    ready: ArcSwap<HashMap<Sources, Ready>>,
    /// What the files were like when they were read. Held while they are read: one at a time.
    stamps: Mutex<HashMap<Sources, Vec<Option<Stamp>>>>,
}

impl Originations {
    /// Reads what `settings` name and is not read yet, and forgets everything else. Blocks; to be
    /// called before rules are in force.
    pub fn prepare<'s>(&self, settings: impl Iterator<Item = &'s TlsSettings>) {
        let wanted = settings.filter(|settings| settings.credential_name.is_none());
        let wanted: HashSet<Sources> = wanted.map(Sources::of).collect();
        self.read(|stamps| {
            stamps.retain(|known, _| wanted.contains(known));
            for sources in wanted {
                // No stamp is like none of any file, so it is read.
                stamps.entry(sources).or_insert_with(|| vec![None]);
            }
        });
    }

    /// Reads again the files that changed since. Blocks.
    pub fn refresh(&self) {
        self.read(|_| {});
    }

    fn read(&self, change: impl FnOnce(&mut HashMap<Sources, Vec<Option<Stamp>>>)) {
        // Stamps have no half-done state.
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut stamps);
        let before = self.ready.load();
        let mut ready: HashMap<Sources, Ready> = HashMap::new();
        for (sources, stamp) in stamps.iter_mut() {
            let now = sources.stamp();
            let old = before.get(sources);
            let same = now == *stamp && now.iter().all(Option::is_some);
            let read = match old {
                Some(old) if same => old.clone(),
                _ => configuration(sources),
            };
            tell(old, &read);
            ready.insert(sources.clone(), read);
            *stamp = now;
        }
        self.ready.store(Arc::new(ready));
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
