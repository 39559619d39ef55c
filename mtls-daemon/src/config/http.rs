//! The flags that say how HTTP is treated, for the whole node.

use clap::{Args, ValueEnum};

use crate::policy::Normalisation;
use crate::proxy::HttpSettings;

#[derive(Debug, Clone, Args)]
pub struct HttpArgs {
    /// Client whose X-Forwarded-Client-Cert is kept, and added to: an ingress gateway, say
    /// (repeatable; comma-separated in the environment)
    ///
    /// A principal as policies write it, cluster.local/ns/istio-ingress/sa/gateway, or prefix*,
    /// *suffix, *. Everybody else's header is replaced.
    #[arg(
        long,
        env = "MTLS_TRUSTED_FORWARDER",
        value_name = "PRINCIPAL",
        value_delimiter = ',',
        value_parser = principal
    )]
    pub trusted_forwarder: Vec<String>,

    /// How many proxies in front of the mesh write a truthful X-Forwarded-For
    ///
    /// remoteIpBlocks in policies mean the client before them. With 0 they mean the connection's
    /// own source, whatever the header says.
    #[arg(
        long,
        env = "MTLS_NUM_TRUSTED_PROXIES",
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u8).range(..=32)
    )]
    pub num_trusted_proxies: u8,

    /// How a request's path is brought into one form, for policies and for the application
    #[arg(
        long,
        env = "MTLS_PATH_NORMALIZATION",
        value_name = "HOW",
        value_enum,
        default_value_t = PathNormalization::Base
    )]
    pub path_normalization: PathNormalization,
}

/// As Istio's MeshConfig calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PathNormalization {
    /// As it came
    None,
    /// Dot segments resolved, unreserved characters unescaped, \ made /
    Base,
    /// Then // made /
    MergeSlashes,
    /// %2F and %5C unescaped before all that
    DecodeAndMergeSlashes,
}

impl From<HttpArgs> for HttpSettings {
    fn from(args: HttpArgs) -> Self {
        Self {
            trusted_forwarders: args.trusted_forwarder,
            trusted_proxies: args.num_trusted_proxies.into(),
            normalisation: match args.path_normalization {
                PathNormalization::None => Normalisation::None,
                PathNormalization::Base => Normalisation::Base,
                PathNormalization::MergeSlashes => Normalisation::MergeSlashes,
                PathNormalization::DecodeAndMergeSlashes => Normalisation::DecodeAndMergeSlashes,
            },
        }
    }
}

fn principal(text: &str) -> Result<String, &'static str> {
    if text.is_empty() {
        Err("expected a principal, for example cluster.local/ns/istio-ingress/sa/gateway")
    } else if text.contains("://") {
        Err("a principal has no spiffe:// in front")
    } else {
        Ok(text.to_owned())
    }
}
