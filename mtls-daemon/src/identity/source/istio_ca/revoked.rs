//! The revocation list on this node: verified, kept on disk, never an older one.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use prost::Message;
use rustls_pki_types::CertificateDer;

use super::IstioCa;
use crate::grpc::mtls_ca_v1::PollResponse;
use crate::identity::ca::files;
use crate::identity::node::ca_id;
use crate::identity::revocations::{Compiled, RevocationList, SIGNED_PREFIX, Trouble};
use crate::identity::{Bundle, TrustDomain};
use crate::tls::statement;
use crate::tls::svid::verify_svid;

/// How often an unchanged list is written, for its time, at least.
const CONFIRM: Duration = Duration::from_secs(60);

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
            let compiled = Compiled::new(&list, &source.settings.trust_domain);
            if let Some(why) = wrong_clock(&compiled, SystemTime::now()) {
                // What it names is refused all the same; its age cannot be told.
                not_restored(source, &format!("is in force, and {why}"));
            }
            source.revocations.replace(compiled);
        }
        Ok(None) => {}
        Err(error) => not_restored(source, &format!("cannot be used: {error}")),
    }
}

fn not_restored(source: &IstioCa, why: &str) {
    let file = file(source);
    let text = format!("the revocation list of an earlier run, {}, {why}", file.display());
    tracing::error!("{text}");
    source.revocations.trouble(Trouble::Restored, Some(text));
}

fn wrong_clock(list: &Compiled, now: SystemTime) -> Option<String> {
    list.is_from_the_future(now).then(|| {
        format!(
            "it was signed at {}, and it is {} here: one of the two clocks is wrong",
            humantime::format_rfc3339_seconds(list.issued()),
            humantime::format_rfc3339_seconds(now)
        )
    })
}

/// Puts the list of an answer in force, and keeps it. True: its content is another than before.
///
/// Blocks: it writes to disk.
pub(super) fn accept(source: &IstioCa, response: &PollResponse) -> Result<bool, String> {
    let revocations = &source.revocations;
    let accepted = check(source, response).map_err(|why| format!("the revocation list: {why}"));
    let said = accepted.as_ref().err().cloned();
    if revocations.trouble(Trouble::Refused, said.clone())
        && let Some(error) = said
    {
        tracing::error!("not taken over: {error}");
    }
    let compiled = accepted?;
    let news = revocations.current().is_none_or(|before| before.number() != compiled.number());
    // In force first: a disk that is full does not bring back what was revoked.
    revocations.replace(compiled);
    revocations.trouble(Trouble::Restored, None);
    keep(source, response, news);
    Ok(news)
}

fn check(source: &IstioCa, response: &PollResponse) -> Result<Compiled, String> {
    let (trust_domain, now) = (&source.settings.trust_domain, SystemTime::now());
    let list = verify(response, source.trust.anchors()?, trust_domain, now)?;
    let compiled = Compiled::new(&list, trust_domain);
    if let Some(why) = wrong_clock(&compiled, now) {
        return Err(why);
    }
    if let Some(before) = source.revocations.current() {
        before.check_next(&compiled, now).map_err(|why| {
            format!(
                "{why}; if the CA was restored from a backup, remove {} and restart this daemon",
                file(source).display()
            )
        })?;
    }
    Ok(compiled)
}

/// An unchanged list is written now and then only, but often enough for its time: a restarted daemon
/// must not find it older than --revocation-max-age because nobody wrote that it was confirmed.
fn keep(source: &IstioCa, response: &PollResponse, news: bool) {
    let most = source.revocations.rules().max_age;
    let confirm = most.map_or(CONFIRM, |most| CONFIRM.min(most / 4));
    let mut kept = source.kept.lock().unwrap_or_else(PoisonError::into_inner);
    if !news && kept.is_some_and(|kept: Instant| kept.elapsed() < confirm) {
        return;
    }
    let content = PollResponse { roots: String::new(), ..response.clone() }.encode_to_vec();
    let error = files::write_private(&file(source), &content).err();
    // Tried again with the next answer.
    *kept = error.is_none().then(Instant::now);
    let said = error.map(|error| {
        format!("the revocation list is in force and cannot be kept for a restart: {error}")
    });
    if source.revocations.trouble(Trouble::Unkept, said.clone())
        && let Some(error) = said
    {
        tracing::error!("{error}");
    }
}
