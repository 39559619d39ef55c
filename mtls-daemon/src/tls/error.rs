//! Why a handshake failed, and whose fault it was.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// A failed handshake or an unusable identity.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate is not one we accept. The text says which rule it broke.
    #[error("the peer's certificate is refused: {0}")]
    PeerRefused(String),
    /// Somebody took the peer's certificate back: the CA's list, or a list in a file.
    #[error("the peer's certificate is refused: {0}")]
    PeerRevoked(String),
    /// Somebody took our own back.
    #[error("our own certificate was taken back: {0}")]
    OwnRevoked(String),
    /// Whether somebody did cannot be told, and has to be.
    #[error("whether a certificate was revoked cannot be told: {0}")]
    RevocationUnknown(String),
    /// The peer refused us, or broke the protocol.
    #[error("the peer ended the handshake: {0}")]
    Peer(String),
    /// The peer refused us because of our certificate, or because we showed none.
    #[error("the peer ended the handshake: it sent the alert {alert}: {cause}")]
    OurCertificate { alert: String, cause: &'static str },
    #[error("the connection broke during the handshake: {0}")]
    Io(#[from] std::io::Error),
    /// Our own key, certificate or configuration.
    #[error("own identity is not usable: {0}")]
    Own(String),
}

impl HandshakeError {
    /// An error of an *established* stream that is the peer's late answer to our handshake: in TLS
    /// 1.3 a client is done before the server has looked at its certificate, so a server's refusal
    /// reaches the client's first read (or write). None: any other error.
    pub fn from_established(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::AlertReceived(alert) if *alert != AlertDescription::CloseNotify => {
                Some(Self::of_alert(*alert))
            }
            _ => None,
        }
    }

    /// Whether it is our own side that failed.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Own(_) | Self::OwnRevoked(_) | Self::RevocationUnknown(_))
    }

    pub(super) fn from_io(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(inner) => Self::from_rustls(inner),
            None => Self::Io(error),
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        let (name, cause) = (alert_name(alert), cause(alert));
        if is_of_certificate(alert) {
            Self::OurCertificate { alert: name, cause }
        } else {
            Self::Peer(format!("it sent the alert {name}: {cause}"))
        }
    }

    pub(super) fn from_rustls(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(CertificateError::BadSignature) => Self::PeerRefused(
                "its signature is wrong: it is signed by another CA of that name, or the peer does not \
                 hold the key of the certificate it shows"
                    .to_owned(),
            ),
            Error::InvalidCertificate(error) => Self::PeerRefused(error.to_string()),
            Error::NoCertificatesPresented => Self::PeerRefused(
                "it presented none, and a client of the mesh must: is its node's daemon running, \
                 and the client enrolled?"
                    .to_owned(),
            ),
            Error::AlertReceived(alert) => Self::of_alert(*alert),
            Error::PeerIncompatible(why) => Self::Peer(format!(
                "it shares no parameters with us ({why:?}); TLS 1.3 is required"
            )),
            // A plaintext answer to a ClientHello ends here.
            Error::InvalidMessage(why) => Self::Peer(format!(
                "what it sent is not TLS ({why:?}); does a server without mTLS listen there?"
            )),
            Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::PeerMisbehaved(_)
            | Error::PeerSentOversizedRecord
            | Error::NoApplicationProtocol
            | Error::DecryptError => Self::Peer(format!("it broke the protocol: {error}")),
            other => Self::Own(other.to_string()),
        }
    }
}

/// What usually makes a mesh peer send an alert.
fn cause(alert: AlertDescription) -> &'static str {
    use AlertDescription as Alert;
    match alert {
        Alert::UnknownCA => {
            "it does not trust our CA: do both nodes use the same CA, or was it made anew on one?"
        }
        Alert::BadCertificate => "it does not accept our certificate as an SVID",
        Alert::CertificateUnknown | Alert::AccessDenied => {
            "it does not accept our identity: is our trust domain one of its own (aliases \
             included), and is our identity the one it expects?"
        }
        Alert::CertificateExpired => {
            "our certificate is out of date for it: do we renew, and are both clocks right?"
        }
        Alert::CertificateRevoked => {
            "our certificate, our identity or our node was revoked (`mtls-daemon ca revoke --list`)"
        }
        Alert::UnsupportedCertificate => {
            "our certificate's key usage or algorithm does not suit it"
        }
        Alert::CertificateRequired | Alert::NoCertificate => "it requires a client certificate",
        Alert::ProtocolVersion => "it does not speak TLS 1.3",
        Alert::HandshakeFailure | Alert::InsufficientSecurity => {
            "it shares no cipher suite or group with us"
        }
        Alert::NoApplicationProtocol => "it does not speak the mesh's protocol `istio`",
        Alert::UnrecognisedName => "it serves nothing under the server name we sent",
        Alert::InternalError => "it had a failure of its own: see its log",
        Alert::DecryptError | Alert::BadRecordMac => "it could not verify what we signed or sent",
        _ => "see its log",
    }
}

/// Alerts that speak of the receiver's certificate.
fn is_of_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
    )
}

/// RFC 8446's spelling.
fn alert_name(alert: AlertDescription) -> String {
    let camel = alert.as_str().map_or_else(|| format!("{alert:?}"), str::to_owned);
    let mut name = String::with_capacity(camel.len() + 4);
    let mut previous_lower = false;
    for c in camel.chars() {
        if c.is_ascii_uppercase() && previous_lower {
            name.push('_');
        }
        previous_lower = c.is_ascii_lowercase();
        name.push(c.to_ascii_lowercase());
    }
    name
}
