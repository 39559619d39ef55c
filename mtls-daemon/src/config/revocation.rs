//! What becomes of a certificate that somebody took back, and of one that nobody speaks of.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{ConfigError, IdentitySource};
use crate::identity::TrustDomain;
use crate::identity::revocations::Rules;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RevocationMode {
    /// What a list names is refused; without a list nobody is
    WhenKnown,
    /// Whoever no list speaks of is refused as well: none was ever had, or it cannot be read
    Required,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Revocation")]
pub struct RevocationArgs {
    /// Whether mTLS needs a revocation list
    #[arg(
        long,
        env = "MTLS_REVOCATION",
        value_name = "MODE",
        value_enum,
        default_value = "when-known"
    )]
    pub revocation: RevocationMode,

    /// Refuse everybody, and end open connections, when the CA's list is older than this, or was never
    /// had, whatever lists in files say; longer than --ca-poll [default: an absent CA breaks nothing]
    #[arg(
        long,
        env = "MTLS_REVOCATION_MAX_AGE",
        value_name = "DURATION",
        value_parser = max_age
    )]
    pub revocation_max_age: Option<Duration>,

    /// Certificate revocation lists of CAs that have no other way to tell (istiod): a file or a
    /// directory of files, PEM or DER, read again when they change
    #[arg(long, env = "MTLS_CRL_FILE", value_name = "FILE|DIR")]
    pub crl_file: Option<PathBuf>,
}

/// As the daemon uses it.
#[derive(Debug, Clone)]
pub struct RevocationSettings {
    pub rules: Rules,
    pub crl_file: Option<PathBuf>,
}

impl RevocationArgs {
    pub(super) fn settings(
        self,
        source: &IdentitySource,
        aliases: &[TrustDomain],
    ) -> Result<RevocationSettings, ConfigError> {
        let required = self.revocation == RevocationMode::Required;
        let without = match source {
            // None of them tells what is revoked.
            IdentitySource::Embedded | IdentitySource::Files(_) | IdentitySource::Spiffe { .. } => {
                true
            }
            IdentitySource::IstioCa { .. } => false,
        };
        if without && self.revocation_max_age.is_some() {
            return Err(ConfigError::NoRevocationList("--revocation-max-age"));
        }
        if without && required && self.crl_file.is_none() {
            return Err(ConfigError::NoRevocationList("--revocation required"));
        }
        if let (Some(most), IdentitySource::IstioCa { poll, .. }) =
            (self.revocation_max_age, source)
            && *poll >= most
        {
            return Err(ConfigError::PollTooSlow { poll: *poll, most });
        }
        let (max_age, aliases) = (self.revocation_max_age, aliases.to_vec());
        let rules = Rules { required, max_age, aliases };
        Ok(RevocationSettings { rules, crl_file: self.crl_file })
    }
}

fn max_age(text: &str) -> Result<Duration, String> {
    // Shorter than a few polls, it would refuse everybody now and then.
    super::flags::duration(text, Duration::from_secs(10), Duration::from_secs(366 * 24 * 3600))
}
