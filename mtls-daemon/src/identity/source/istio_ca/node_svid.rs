//! The node's own SVID: brought by a join token once, renewed with itself from then on, and kept on
//! disk, for a restarted daemon has no second token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::Mutex;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::trust::certificates;
use super::{Denial, IstioCa, Reason, Settings, SourceError, read_token};
use crate::identity::ca::files;
use crate::identity::revocations::normal_serial;
use crate::identity::slot::half_life;
use crate::identity::{NodeName, SpiffeId, Svid};

pub(super) struct NodeSvid {
    id: SpiffeId,
    join_token: Option<PathBuf>,
    file: PathBuf,
    /// Held while a new one is asked for: a token is spent once.
    held: Mutex<Option<Held>>,
}

struct Held {
    svid: Arc<Svid>,
    /// None: it is from an earlier run.
    fresh: Option<Fresh>,
}

/// What is known of an SVID that this run got.
struct Fresh {
    /// The CA's roots at the time. With other ones the SVID may soon be one that the CA does not know
    /// any more.
    roots: Vec<CertificateDer<'static>>,
    /// Not what its certificate says: that begins before it was issued.
    half_life: SystemTime,
}

impl NodeSvid {
    pub(super) fn new(
        name: &NodeName,
        join_token: Option<PathBuf>,
        settings: &Settings,
    ) -> Result<Self, SourceError> {
        let id = name.id(&settings.trust_domain);
        let id = id.map_err(|error| SourceError::Other(error.to_string()))?;
        let file = settings.state_dir.join("node-svid.pem");
        Ok(Self { id, join_token, file, held: Mutex::new(None) })
    }

    /// One that is valid; renewed after half of its life, when the CA's roots changed, and by each run.
    pub(super) async fn current(&self, source: &IstioCa) -> Result<Arc<Svid>, Denial> {
        let mut held = self.held.lock().await;
        let now = SystemTime::now();
        if held.is_none() {
            let svid = read(&self.file, &self.id)?;
            *held = svid.map(|svid| Held { svid: Arc::new(svid), fresh: None });
        }
        let anchors = source.trust.anchors()?;
        let fresh = held.as_ref().and_then(|held| held.fresh.as_ref());
        let good = fresh.is_some_and(|it| it.roots == anchors && now < it.half_life);
        let valid = held.as_ref().map(|held| &held.svid).filter(|svid| svid.not_after > now);
        let valid = valid.cloned();
        let renewed = match &valid {
            Some(svid) if good => return Ok(svid.clone()),
            Some(svid) => match self.ask(source, Some(svid)).await {
                // A CA that does not know our SVID any more may know a new token.
                Err(error) if self.join_token.as_ref().is_some_and(|token| token.exists()) => {
                    self.ask(source, None).await.map_err(|_| error)
                }
                asked => asked,
            },
            None => self.ask(source, None).await,
        };
        match (renewed, valid) {
            (Ok((svid, roots)), _) => {
                let svid = Arc::new(svid);
                write(&self.file, &svid)?;
                tracing::info!(node = %self.id, serial = svid.serial, "the node's own SVID");
                let half_life = half_life(svid.not_after, SystemTime::now());
                let fresh = Some(Fresh { roots, half_life });
                *held = Some(Held { svid: svid.clone(), fresh });
                Ok(svid)
            }
            (Err(error), Some(old)) => {
                tracing::warn!(%error, "the node's own SVID is not renewed yet");
                Ok(old)
            }
            (Err(Denial { reason, text }), None) => {
                let way_out = match &self.join_token {
                    // Spent, most likely: it was good for the SVID that has ended.
                    Some(file) if reason == Reason::Refused => format!(
                        "; a new token in {} lets it join again (`mtls-daemon ca token create`)",
                        file.display()
                    ),
                    _ => String::new(),
                };
                Err(Denial {
                    reason,
                    text: format!("no SVID for the node itself: {text}{way_out}"),
                })
            }
        }
    }

    /// With the roots that came with it.
    async fn ask(
        &self,
        source: &IstioCa,
        own: Option<&Svid>,
    ) -> Result<(Svid, Vec<CertificateDer<'static>>), Denial> {
        let credential = Denial::new(Reason::Credential);
        let token = match (own, &self.join_token) {
            (Some(_), _) => None,
            (None, Some(path)) => Some(read_token(path).map_err(credential)?),
            (None, None) => {
                return Err(credential(
                    "there is none from before, and no join token: make one with \
                            `mtls-daemon ca token create` and give it with --ca-join-token-file"
                        .to_owned(),
                ));
            }
        };
        let channel = source.client.connect(&source.trust, own).await?;
        let answer = source.client.certificate(channel, &self.id, None, token).await?;
        source.trust.learn(&answer.roots)?;
        Ok((answer.svid, certificates(&answer.roots)?))
    }
}

/// None: there is none, or another node's.
fn read(file: &Path, id: &SpiffeId) -> Result<Option<Svid>, String> {
    let Some(text) = files::read_private(file).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let spoilt = |why: String| format!("{} cannot be used: {why}; remove it", file.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|error| spoilt(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes());
    let key = key.map_err(|error| spoilt(error.to_string()))?;
    let leaf = chain.first().ok_or_else(|| spoilt("it has no certificate".to_owned()))?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| spoilt(error.to_string()))?;
    let named = leaf.subject_alternative_name().ok().flatten().is_some_and(|names| {
        let own = x509_parser::extensions::GeneralName::URI(id.as_str());
        names.value.general_names.contains(&own)
    });
    if !named {
        tracing::warn!(file = %file.display(), node = %id, "the SVID there is another node's");
        return Ok(None);
    }
    let serial = normal_serial(&leaf.serial.to_str_radix(16));
    let not_before = leaf.validity().not_before.to_datetime().into();
    let not_after = leaf.validity().not_after.to_datetime().into();
    Ok(Some(Svid { id: id.clone(), chain: chain.clone(), key, serial, not_before, not_after }))
}

fn write(file: &Path, svid: &Svid) -> Result<(), String> {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let block =
        |tag, der: &[u8]| Zeroizing::new(pem::encode_config(&pem::Pem::new(tag, der), config));
    // Room for all of it: a string that grows leaves pieces of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
    text.push_str(&block("PRIVATE KEY", svid.key.secret_der()));
    for certificate in &svid.chain {
        text.push_str(&block("CERTIFICATE", certificate));
    }
    files::write_private(file, text.as_bytes()).map_err(|error| error.to_string())
}
