//! `mtls-daemon ca`

mod node;
mod owner;
mod revoke;
mod root;
mod run;
mod token;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};

use super::{Exit, Failed};
use crate::ca::{StateDir, domain};
use crate::identity::ca::CaError;
use crate::identity::ca::sealed::SealingKey;
use crate::identity::{KeyType, SpiffeId, TrustDomain};

/// The verbs of `mtls-daemon ca`. All but `run` change files that the running CA reads anew at once.
#[derive(Debug, Subcommand)]
pub(super) enum CaVerb {
    /// Run a certificate authority for this mesh until SIGTERM or SIGINT
    #[command(visible_alias = "serve", after_help = super::exit::HELP)]
    Run(Box<run::RunArgs>),
    /// Join tokens: how a machine outside of Kubernetes gets its first certificate
    #[command(subcommand)]
    Token(token::TokenVerb),
    /// The nodes that joined, and the identities that they may run
    #[command(after_help = super::exit::HELP)]
    Nodes(node::NodesArgs),
    /// Revoke a certificate, an identity or a node, or show what is revoked
    #[command(after_help = super::exit::HELP)]
    Revoke(revoke::RevokeArgs),
    /// Replace the CA's root, at once or in three steps, without a failed connection
    #[command(subcommand)]
    Root(root::RootVerb),
}

/// Which CA.
#[derive(Debug, Clone, Args)]
pub(super) struct DirectoryArgs {
    /// The CA's directory: its keys, tokens, nodes and revocations
    #[arg(long, env = "MTLS_CA_DIRECTORY", value_name = "DIR", default_value = "/var/lib/mtls-ca")]
    dir: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(super) struct TrustDomainArgs {
    /// Trust domain of every identity that this CA signs
    #[arg(
        long,
        env = "MTLS_TRUST_DOMAIN",
        value_name = "TD",
        default_value = "cluster.local",
        value_parser = trust_domain
    )]
    trust_domain: TrustDomain,
}

/// Of a verb other than `run`: the CA's directory knows it.
#[derive(Debug, Clone, Args)]
pub(super) struct KeptTrustDomainArgs {
    /// Trust domain of the CA [default: the one that `ca run` keeps in the directory]
    #[arg(long, env = "MTLS_TRUST_DOMAIN", value_name = "TD", value_parser = trust_domain)]
    trust_domain: Option<TrustDomain>,
}

impl KeptTrustDomainArgs {
    /// The directory's; another one is refused.
    fn of(&self, directory: &StateDir) -> Result<TrustDomain, Failed> {
        match (&self.trust_domain, domain::kept(directory).map_err(failed)?) {
            (None, Some(kept)) => Ok(kept),
            (Some(given), Some(kept)) => {
                domain::same(directory, &kept, given).map_err(failed)?;
                Ok(kept)
            }
            (Some(given), None) => Ok(given.clone()),
            (None, None) => {
                let error = anyhow::anyhow!(
                    "{} does not know its trust domain yet: start `ca run` once, or name it with \
                     --trust-domain",
                    directory.path("").display()
                );
                Err(Failed::new(Exit::Config, error))
            }
        }
    }
}

/// How a root is made.
#[derive(Debug, Args)]
pub(super) struct RootKeyArgs {
    /// Key of a root that has to be made
    #[arg(
        long,
        env = "MTLS_CA_ROOT_KEY",
        value_name = "KIND",
        value_enum,
        default_value = "ecdsa-p256"
    )]
    root_key: KeyType,

    /// File of at least 32 random bytes; the roots' keys are encrypted with it at rest
    #[arg(long, env = "MTLS_CA_KEY_ENCRYPTION_FILE", value_name = "FILE")]
    key_encryption_file: Option<PathBuf>,
}

impl RootKeyArgs {
    fn sealing(&self) -> Result<Option<SealingKey>, Failed> {
        let read = self.key_encryption_file.as_deref().map(SealingKey::read).transpose();
        read.map_err(failed)
    }
}

pub(super) fn ca(verb: CaVerb) -> Result<(), Failed> {
    // Others than `run` have a root's key in memory as well.
    super::run::keep_keys_out_of_core_files()?;
    match verb {
        CaVerb::Run(args) => run::run(*args),
        CaVerb::Token(verb) => token::token(verb),
        CaVerb::Nodes(args) => node::nodes(args),
        CaVerb::Revoke(args) => revoke::revoke(args),
        CaVerb::Root(verb) => root::root(verb),
    }
}

impl DirectoryArgs {
    /// The directory of a CA that ran at least once: a slip of the pen makes no new one. From here on
    /// this process is its owner's.
    fn open(&self) -> Result<StateDir, Failed> {
        if !self.dir.is_dir() {
            let error = anyhow::anyhow!(
                "{} is no CA's directory: `mtls-daemon ca run --dir` makes it",
                self.dir.display()
            );
            return Err(Failed::new(Exit::Config, error));
        }
        owner::become_owner(&self.dir)?;
        StateDir::open(&self.dir).map_err(failed)
    }
}

fn failed(error: CaError) -> Failed {
    match error {
        CaError::OtherTrustDomain { .. } => Failed::new(Exit::Config, error),
        error => anyhow::Error::from(error).into(),
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::configured(text).map_err(|error| error.to_string())
}

/// A whole SPIFFE ID, or `<namespace>/<service account>` in the trust domain.
fn workload(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, Failed> {
    let id = match text.split_once('/') {
        Some((namespace, account)) if !text.contains("://") => {
            SpiffeId::istio(trust_domain, namespace, account).map_err(|error| error.to_string())
        }
        _ => crate::ca::allow::workload(text, trust_domain).map_err(|error| error.to_string()),
    };
    id.map_err(|why| {
        let error = anyhow::anyhow!(
            "{text:?} is no workload's identity: {why}; expected <namespace>/<service account>"
        );
        Failed::new(Exit::Config, error)
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; expected a duration such as 10m, 24h or 90days"))?;
    let year = Duration::from_secs(366 * 24 * 3600);
    if duration < Duration::from_secs(1) || duration > year {
        return Err("it must lie between a second and a year".to_owned());
    }
    Ok(duration)
}

fn date(seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}
