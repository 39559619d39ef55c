//! The revocation list on this node: verified, kept on disk, never an older one.

use std::path::PathBuf;
use std::time::SystemTime;

use prost::Message;
use rustls_pki_types::CertificateDer;

use super::IstioCa;
use crate::grpc::mtls_ca_v1::PollResponse;
use crate::identity::ca::files;
use crate::identity::node::ca_id;
use crate::identity::revocations::{Compiled, RevocationList, SIGNED_PREFIX};
use crate::identity::{Bundle, TrustDomain};
use crate::tls::statement;
use crate::tls::svid::verify_svid;

fn file(source: &IstioCa) -> PathBuf {
    source.settings.state_dir.join("revocations.signed")
}

/// The list in an answer, if the CA signed it.
pub(super) fn verify(
    response: &PollResponse,
    anchors: Vec<CertificateDer<'static>>,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<RevocationList, String> {
    let chain: Vec<CertificateDer<'_>> =
        response.signer.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let signer = ca_id(trust_domain, "revocations").map_err(|error| error.to_string())?;
    let bundle = Bundle { trust_domain: trust_domain.clone(), anchors };
    verify_svid(&chain, &[bundle], Some(&[signer]), now).map_err(|error| error.to_string())?;
    let signed = [SIGNED_PREFIX, &response.revocations].concat();
    statement::check_signature(&chain[0], &signed, &response.signature)?;
    let list: RevocationList =
        serde_json::from_slice(&response.revocations).map_err(|error| error.to_string())?;
    if list.trust_domain != trust_domain.as_str() {
        return Err(format!("it is the list of {}", list.trust_domain));
    }
    Ok(list)
}

/// The list of an earlier run. What cannot be used is said, and refuses everybody only where a list is
/// required.
pub(super) fn restore(source: &IstioCa) {
    let restored = || -> Result<Option<RevocationList>, String> {
        if !file(source).exists() {
            return Ok(None);
        }
        let bytes = files::read_private_bytes(&file(source)).map_err(|error| error.to_string())?;
        let response = PollResponse::decode(&bytes[..]).map_err(|error| error.to_string())?;
        let anchors = source.trust.anchors()?;
        let list = verify(&response, anchors, &source.settings.trust_domain, SystemTime::now())?;
        Ok(Some(list))
    };
    match restored() {
        Ok(Some(list)) => {
            source.revocations.replace(Compiled::new(&list, &source.settings.trust_domain));
        }
        Ok(None) => {}
        Err(error) => tracing::error!(
            file = %file(source).display(),
            %error,
            "the revocation list of an earlier run cannot be used"
        ),
    }
}

/// Puts the list of an answer in force, and keeps it. True: its content is another than before.
pub(super) fn accept(source: &IstioCa, response: &PollResponse) -> Result<bool, String> {
    let trust_domain = &source.settings.trust_domain;
    let list = verify(response, source.trust.anchors()?, trust_domain, SystemTime::now())
        .map_err(|why| format!("the revocation list: {why}"))?;
    let compiled = Compiled::new(&list, trust_domain);
    let before = source.revocations.current();
    if let Some(before) = &before
        && !before.may_be_followed_by(&compiled)
    {
        return Err(format!(
            "the revocation list has number {} and is older than ours, which has {}; if the CA was \
             restored from a backup, remove {}",
            compiled.number(),
            before.number(),
            file(source).display()
        ));
    }
    let news = before.is_none_or(|before| before.number() != compiled.number());
    // On disk first: after a crash the older one must not be in force again.
    let kept = PollResponse { roots: String::new(), ..response.clone() };
    files::write_private(&file(source), &kept.encode_to_vec()).map_err(|it| it.to_string())?;
    source.revocations.replace(compiled);
    Ok(news)
}
