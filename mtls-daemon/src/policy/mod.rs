//! Istio's policy kinds: their model, how they are read from YAML, and how they resolve to one
//! effective answer. Pure: no IO, the same code for the daemon, the command line and the tests.

pub mod authz;
pub mod auto;
pub mod client_tls;
pub mod destination_rule;
pub mod effective;
pub mod error;
pub mod export;
pub mod field;
pub mod host;
pub mod inbound;
pub mod legacy;
pub mod lookup;
pub mod metadata;
pub mod mode;
pub(crate) mod near;
pub mod parse;
pub mod path;
pub mod peer_authentication;
pub mod protocol;
#[cfg(test)]
pub(crate) mod tests;
mod traffic;
pub mod upstream;
pub mod xfcc;
pub mod yaml;

pub use authz::{AuthorizationPolicy, Authorizations, AuthzSettings, WorkloadAuthorization};
pub use client_tls::{TlsMode, TlsSettings};
pub use destination_rule::DestinationRule;
pub use effective::{PeerAuthentications, WorkloadModes};
pub use error::{Code, ConfigError, Report};
pub use lookup::{DestinationRules, ResolvedRule};
pub use metadata::ObjectMeta;
pub use mode::{EffectiveMode, Mode};
pub use path::{BadPath, Normalisation, normalise};
pub use peer_authentication::PeerAuthentication;
pub use protocol::{PortProtocol, speaks_http2};
