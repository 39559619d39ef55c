//! Where SVIDs come from, and what tells that there are others.

use std::sync::Arc;
use std::time::Duration;

use super::RunError;
use crate::config::{Config, IdentitySource};
use crate::identity::source::SvidSource;
use crate::identity::source::embedded::EmbeddedCa;
use crate::identity::source::files::Files;
use crate::identity::source::istio_ca::{self, IstioCa};
use crate::identity::source::spiffe::{self, SpiffeAgent};
use crate::identity::{Federation, Revocations, SvidStore};
use crate::tls::Checks;

/// A source that changes without being asked.
pub enum Follow {
    Nothing,
    /// For revocations and new roots.
    Ca(Arc<IstioCa>, Duration),
    Files(Arc<Files>),
    Agent(Arc<SpiffeAgent>),
}

impl Follow {
    /// Never ends, unless there is nothing to follow.
    pub async fn run(self, store: Arc<SvidStore>, federation: Arc<Federation>) {
        match self {
            Self::Nothing => {}
            Self::Ca(server, interval) => {
                let back = store.clone();
                server.follow(interval, move || store.renew_all(), move || back.retry()).await;
            }
            Self::Files(files) => files.follow(move |ids| store.changed(ids)).await,
            Self::Agent(agent) => {
                agent.follow(federation, move |ids| store.changed(ids)).await;
            }
        }
    }
}

pub fn source(
    config: &Config,
    revocations: &Arc<Revocations>,
) -> Result<(Arc<dyn SvidSource>, Follow), RunError> {
    let trust_domain = config.mesh.trust_domain.clone();
    match &config.identity {
        IdentitySource::Embedded => {
            let ca = EmbeddedCa::open(
                &config.ca_dir,
                trust_domain,
                config.key_type,
                config.svid_lifetime,
            )?;
            Ok((Arc::new(ca), Follow::Nothing))
        }
        IdentitySource::IstioCa { address, server_name, root_file, credential, cluster, poll } => {
            let settings = istio_ca::Settings {
                address: address.clone(),
                server_name: server_name.clone(),
                root_file: root_file.clone(),
                credential: credential.clone(),
                cluster: cluster.clone(),
                trust_domain,
                key_type: config.key_type,
                lifetime: config.svid_lifetime,
                state_dir: config.state_dir.clone(),
            };
            let server = Arc::new(IstioCa::new(settings, revocations.clone())?);
            Ok((server.clone(), Follow::Ca(server, *poll)))
        }
        IdentitySource::Files(directory) => {
            let files = Arc::new(Files::new(directory, trust_domain)?);
            Ok((files.clone(), Follow::Files(files)))
        }
        IdentitySource::Spiffe { api, socket } => {
            let (api, socket) = (api.clone(), socket.clone());
            let agent = Arc::new(SpiffeAgent::new(spiffe::Settings { api, socket, trust_domain }));
            Ok((agent.clone(), Follow::Agent(agent)))
        }
    }
}

/// A certificate of ours that was taken back by its number is followed by another at once.
pub async fn replace_revoked(store: Arc<SvidStore>, checks: Arc<Checks>) {
    let mut changed = checks.changed();
    while changed.changed().await.is_ok() {
        store.renew_revoked();
    }
}

/// Whoever was believed by a bundle that is another now is looked at again.
pub async fn judge_again(checks: Arc<Checks>) {
    let mut changed = checks.federated().changed();
    while changed.changed().await.is_ok() {
        checks.list().judge_again();
    }
}
