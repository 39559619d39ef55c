//! TLS to a web server that is known by its DNS name, as browsers do: SPIFFE's `https_web` profile.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::HandshakeError;
use super::originate::files::system_roots;
use super::provider::provider;

/// The server chooses.
static VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

pub type WebStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Over `stream`, to `server_name`. `roots`: PEM of the authorities to believe; without it the
/// system's. Not bounded in time: the caller does that.
///
/// # Errors
/// No authority can be read, or the handshake failed.
pub async fn connect(
    stream: TcpStream,
    server_name: &str,
    roots: Option<&Path>,
) -> Result<WebStream, HandshakeError> {
    let own = |why: String| HandshakeError::Own(why);
    let file = roots.unwrap_or(Path::new(system_roots()));
    let text = std::fs::read(file)
        .map_err(|error| own(format!("cannot read the authorities {}: {error}", file.display())))?;
    let mut store = RootCertStore::empty();
    // One that cannot be read trusts nobody; the others still count, as elsewhere.
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).filter_map(Result::ok));
    if store.is_empty() {
        return Err(own(format!("there is no authority in {}", file.display())));
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| own(error.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    let name = ServerName::try_from(server_name.trim_matches(['[', ']']).to_owned())
        .map_err(|_| own(format!("{server_name:?} is no name of a server")))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map_err(HandshakeError::from_io)
}
