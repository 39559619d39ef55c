//! Whole chains, bundles and a time of day that a row describes instead of bringing them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use super::recipe::{self, Signer};
use crate::identity::{Bundle, SpiffeId, TrustDomain};

/// The leaf of a row that does not say whose it is.
const LEAF: &str = "spiffe://example.org/test";
/// What signs where a row does not say what does.
const ROOT: &str = "root";

/// Everything that a verification takes.
pub(super) struct Made {
    pub chain: Vec<CertificateDer<'static>>,
    pub bundles: Vec<Bundle>,
    /// None: anybody.
    pub accepted: Option<Vec<SpiffeId>>,
    pub at: SystemTime,
}

/// Roots by name. One that is named for the first time is made.
#[derive(Default)]
struct Roots(BTreeMap<String, Signer>);

impl Roots {
    /// What stands behind the name, as in `ca1(domain1.test)`, explains it to a reader.
    fn get(&mut self, text: &str) -> Result<&Signer> {
        let name = text.split(['(', ' ']).next().unwrap_or_default();
        ensure!(!name.is_empty(), "{text:?} names no CA");
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), Signer::root()?);
        }
        self.0.get(name).context("it was made just now")
    }
}

/// `setup` of a row; `shown`: the row's `chain`, which may say that nothing is shown.
pub(super) fn setup(setup: &Value, shown: Option<&Value>) -> Result<Made> {
    let fields = setup.as_object().context("a setup is an object")?;
    const KNOWN: [&str; 9] = [
        "leaf_uri",
        "uri_sans",
        "leaf_ca",
        "extra_key_usage",
        "leaf_signed_by",
        "chain",
        "bundles",
        "accepted",
        "verify_at",
    ];
    if let Some(other) = fields.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        bail!("a setup with the unknown field `{other}`");
    }
    let listed = match fields.get("chain").or(shown) {
        Some(list) => Some(recipe::texts(list)?),
        None => None,
    };
    let leaf = leaf(setup, listed.as_ref().and_then(|list| list.first().copied()))?;
    let mut roots = Roots::default();
    let signer = fields
        .get("leaf_signed_by")
        .filter(|it| !it.is_null())
        .map_or(Ok(ROOT), |it| it.as_str().context("a name"))?;
    let chain = match &listed {
        Some(list) if list.is_empty() => Vec::new(),
        Some(list) => sign(roots.get(signer)?, &leaf, &list[1..])?,
        None => sign(roots.get(signer)?, &leaf, &[])?,
    };
    let bundles = match fields.get("bundles") {
        Some(bundles) => bundles_of(bundles, &mut roots)?,
        None => {
            let domain = TrustDomain::parse("example.org")?;
            vec![Bundle::new(domain, vec![roots.get(signer)?.certificate.clone()])]
        }
    };
    let accepted = match fields.get("accepted") {
        Some(list) => {
            let ids = recipe::texts(list)?.into_iter().map(SpiffeId::parse);
            Some(ids.collect::<Result<_, _>>()?)
        }
        None => None,
    };
    let at = match fields.get("verify_at") {
        Some(text) => time(text.as_str().context("`verify_at` is no text")?, &leaf)?,
        None => SystemTime::now(),
    };
    Ok(Made { chain, bundles, accepted, at })
}

/// `listed` is its own entry of the chain.
fn leaf(setup: &Value, listed: Option<&str>) -> Result<CertificateParams> {
    let mut params = recipe::svid();
    // null means that it has none.
    params.subject_alt_names = match (setup.get("uri_sans"), setup.get("leaf_uri")) {
        (Some(uris), _) => recipe::uris(uris)?,
        (None, Some(uri)) => recipe::uris(uri)?,
        (None, None) => vec![recipe::uri(listed.and_then(uri_in).unwrap_or(LEAF))?],
    };
    if setup["leaf_ca"] == true {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    if let Some(more) = setup.get("extra_key_usage") {
        params.key_usages.extend(recipe::key_usages(more)?);
    }
    Ok(params)
}

/// The chain whose last certificate `root` signs. `above` are the intermediates, nearest first:
/// `NAME [URI] [(CA)]`.
fn sign(
    root: &Signer,
    leaf: &CertificateParams,
    above: &[&str],
) -> Result<Vec<CertificateDer<'static>>> {
    let mut made: Vec<Signer> = Vec::new();
    for text in above.iter().rev() {
        let mut params = recipe::ca();
        let name = text.split(' ').next().unwrap_or_default();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(uri) = uri_in(text) {
            params.subject_alt_names = vec![recipe::uri(uri)?];
        }
        if !text.contains("(CA)") {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
        made.push(made.last().unwrap_or(root).sign(&params)?);
    }
    made.push(made.last().unwrap_or(root).sign(leaf)?);
    Ok(made.into_iter().rev().map(|signer| signer.certificate).collect())
}

fn uri_in(text: &str) -> Option<&str> {
    text.split(' ').find(|word| word.contains("://"))
}

fn bundles_of(bundles: &Value, roots: &mut Roots) -> Result<Vec<Bundle>> {
    let mut made = Vec::new();
    for (domain, names) in bundles.as_object().context("`bundles` is no object")? {
        let mut anchors = Vec::new();
        for name in recipe::texts(names)? {
            anchors.push(roots.get(name)?.certificate.clone());
        }
        made.push(Bundle::new(TrustDomain::parse(domain)?, anchors));
    }
    Ok(made)
}

/// `NotAfter+1s`, `NotBefore-1m`, or a time such as 2030-01-31T12:00:00Z.
fn time(text: &str, leaf: &CertificateParams) -> Result<SystemTime> {
    let (end, rest) = if let Some(rest) = text.strip_prefix("NotAfter") {
        (leaf.not_after, rest)
    } else if let Some(rest) = text.strip_prefix("NotBefore") {
        (leaf.not_before, rest)
    } else {
        return Ok(humantime::parse_rfc3339(text)?);
    };
    let end = SystemTime::from(end);
    let by = |text: &str| -> Result<Duration> { Ok(humantime::parse_duration(text)?) };
    Ok(match rest.split_at_checked(1) {
        None => end,
        Some(("+", later)) => end + by(later)?,
        Some(("-", earlier)) => end - by(earlier)?,
        Some(_) => bail!("{text:?} is no time"),
    })
}
