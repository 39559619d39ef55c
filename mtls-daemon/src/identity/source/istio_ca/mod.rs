//! A certificate authority that speaks Istio's protocol: `mtls-daemon ca`, istiod, istio-csr.
//!
//! Keys are made here; the CA gets a CSR and never a key. Who we are is shown by a service account's
//! token, or by the node's own SVID, which a join token brought once. An identity is asked for on
//! behalf of the node's workloads (impersonation, policy.md 7.4).

mod client;
mod join_key;
mod node_svid;
pub mod poll;
mod revoked;
mod trust;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Handle;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroize;

use super::denial::Denial;
use super::{Reason, SourceError, SvidSource};
use crate::identity::revocations::normal_serial;
use crate::identity::{
    Bundle, KeyType, NodeName, Revocations, SpiffeId, Svid, SvidStatus, TrustDomain,
};
use crate::tls::svid::verify_svid;
use client::Client;
use node_svid::NodeSvid;
use trust::Trust;

/// Renewal has half of a lifetime: there is no hurry, and a CA that hangs must not hold a place.
pub(crate) const ANSWER: Duration = Duration::from_secs(15);
/// As `status` prints it.
const NAME: &str = "istio-ca";

#[derive(Debug, Clone)]
pub struct Settings {
    /// Host and port.
    pub address: String,
    /// The DNS name that the CA's certificate must have.
    pub server_name: String,
    /// PEM: whom to trust as the CA until it says otherwise.
    pub root_file: PathBuf,
    pub credential: Credential,
    /// What istiod calls the cluster that our tokens are of.
    pub cluster: String,
    pub trust_domain: TrustDomain,
    pub key_type: KeyType,
    pub lifetime: Duration,
    /// For what has to outlive the daemon: the node's SVID, roots, the revocation list.
    pub state_dir: PathBuf,
}

/// How the CA knows us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A token that something else keeps fresh, sent with every request.
    TokenFile(PathBuf),
    /// The node's own SVID; the file's token is spent to get the first one.
    Node { name: NodeName, join_token: Option<PathBuf> },
}

/// SVIDs from a CA server.
pub struct IstioCa {
    settings: Settings,
    runtime: Handle,
    trust: Arc<Trust>,
    client: Arc<Client>,
    node: Option<Arc<NodeSvid>>,
    revocations: Arc<Revocations>,
    /// When the revocation list was last written to disk.
    kept: Mutex<Option<Instant>>,
}

/// A private key that is wiped however it goes, also when nobody answers.
struct Wiped(KeyPair);

impl Wiped {
    fn wipe(&mut self) {
        self.0.zeroize();
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// A CA's answer, checked.
struct Answer {
    svid: Svid,
    /// PEM.
    roots: String,
}

impl IstioCa {
    /// Within the runtime that is to make the connections. Nothing is asked for yet; the revocation
    /// list of an earlier run is in force at once.
    pub fn new(settings: Settings, revocations: Arc<Revocations>) -> Result<Self, SourceError> {
        let trust = Arc::new(Trust::new(&settings.root_file, &settings.state_dir));
        let client = Arc::new(Client::new(&settings));
        // A mistake in the file shows at the start, not at the first connection.
        trust.check_file().map_err(SourceError::Other)?;
        let node = match &settings.credential {
            Credential::TokenFile(_) => None,
            Credential::Node { name, join_token } => {
                let (client, trust) = (client.clone(), trust.clone());
                let node = NodeSvid::new(name, join_token.clone(), &settings, client, trust)?;
                Some(Arc::new(node))
            }
        };
        let source = Self {
            client,
            runtime: Handle::current(),
            trust,
            node,
            revocations,
            kept: Mutex::default(),
            settings,
        };
        revoked::restore(&source);
        Ok(source)
    }

    async fn ask(&self, id: &SpiffeId) -> Result<Svid, Denial> {
        let own = match &self.node {
            Some(node) => Some(node.current().await?),
            None => None,
        };
        let channel = self.client.channel(&self.trust, own.as_ref()).await?;
        let answer = self.client.certificate(channel, id, Some(id), self.token()?, None).await;
        if answer.is_err() {
            self.client.forget();
        }
        let Answer { svid, roots } = answer?;
        self.trust.learn(&roots)?;
        Ok(svid)
    }

    fn token(&self) -> Result<Option<zeroize::Zeroizing<String>>, Denial> {
        match &self.settings.credential {
            Credential::TokenFile(path) => {
                read_token(path).map(Some).map_err(Denial::new(Reason::Credential))
            }
            Credential::Node { .. } => Ok(None),
        }
    }
}

impl SvidSource for IstioCa {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError> {
        // On a thread for blocking work; the connection itself is the runtime's.
        let asked = async {
            tokio::time::timeout(ANSWER, self.ask(id)).await.unwrap_or_else(|_| {
                let text = format!("no answer within {} s", ANSWER.as_secs());
                Err(Denial { reason: Reason::Timeout, text })
            })
        };
        let asked = self.runtime.block_on(asked);
        let named = |why: &str| format!("the CA at {}: {why}", self.settings.address);
        Ok(asked.map_err(|denial| denial.said(named))?)
    }

    fn bundle(&self) -> Result<Bundle, SourceError> {
        let anchors = self.trust.anchors().map_err(SourceError::Other)?;
        Ok(Bundle { trust_domain: self.settings.trust_domain.clone(), anchors })
    }

    fn own(&self) -> Option<SvidStatus> {
        self.node.as_ref().map(|node| node.status())
    }

    fn warn_of_expiry(&self, now: SystemTime) {
        if let Some(node) = &self.node {
            node.warn_of_expiry(now);
        }
    }

    fn trouble(&self) -> Option<String> {
        self.trust.trouble()
    }

    fn name(&self) -> &'static str {
        NAME
    }
}

fn read_token(path: &std::path::Path) -> Result<zeroize::Zeroizing<String>, String> {
    let text = std::fs::read_to_string(path).map(zeroize::Zeroizing::new);
    let text =
        text.map_err(|error| format!("cannot read the token {}: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("the token file {} is empty", path.display())),
        token => Ok(token.to_owned().into()),
    }
}

fn new_key(key_type: KeyType) -> Result<Wiped, String> {
    let made = key_type.generate().map_err(|error| format!("no key can be made: {error}"))?;
    Ok(Wiped(made))
}

/// The names in a CSR are a courtesy to CAs that look.
fn csr_of(id: &SpiffeId, key: &Wiped) -> Result<String, String> {
    let failed = |error: rcgen::Error| format!("no CSR can be made: {error}");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uri = id.as_str().try_into().map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.serialize_request(&key.0).and_then(|csr| csr.pem()).map_err(failed)
}

/// Takes a response apart (policy.md 7.1): the leaf, what is between, and all roots in the last
/// element.
fn read_answer(
    id: &SpiffeId,
    trust_domain: &TrustDomain,
    key: Wiped,
    elements: &[String],
) -> Result<Answer, String> {
    let (chain, roots) = check_answer(id, trust_domain, &key.0, elements)?;
    let (_, leaf) = X509Certificate::from_der(&chain[0]).map_err(|error| error.to_string())?;
    let svid = Svid {
        id: id.clone(),
        serial: normal_serial(&leaf.serial.to_str_radix(16)),
        not_before: leaf.validity().not_before.to_datetime().into(),
        not_after: leaf.validity().not_after.to_datetime().into(),
        chain: chain.clone(),
        key: PrivateKeyDer::Pkcs8(key.0.serialize_der().into()),
    };
    Ok(Answer { svid, roots })
}

type ChainAndRoots = (Vec<CertificateDer<'static>>, String);

fn check_answer(
    id: &SpiffeId,
    trust_domain: &TrustDomain,
    key: &KeyPair,
    elements: &[String],
) -> Result<ChainAndRoots, String> {
    let [chain @ .., roots] = elements else { return Err("its answer is empty".to_owned()) };
    let certificates = |pem: &str| {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        all.map_err(|error| format!("its answer is not PEM: {error}"))
    };
    let anchors = certificates(roots)?;
    let chain: Result<Vec<_>, _> = chain.iter().map(|pem| certificates(pem)).collect();
    let chain = chain?.concat();
    let leaf = chain.first().ok_or("its answer has no certificate beside the root")?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err("its answer is a certificate for another key".to_owned());
    }
    let own = Bundle { trust_domain: trust_domain.clone(), anchors };
    verify_svid(&chain, &[own], Some(std::slice::from_ref(id)), SystemTime::now())
        .map_err(|why| format!("its answer does not verify: {why}"))?;
    Ok((chain, roots.clone()))
}

#[cfg(test)]
#[path = "../istio_ca_tests.rs"]
mod tests;
