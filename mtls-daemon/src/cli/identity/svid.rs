//! `mtls-daemon identity check-svid`

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::super::cases::{self, Answer, CaseFile, CasesArgs, Table};
use super::mutation::Mutations;
use super::{Exit, Failed, bundle, invalid, making, recipe, said, says, show, valid};
use crate::identity::{SpiffeId, TrustDomain, encoding};
use crate::tls::svid::{SvidFacts, check_key, parse_svid, verify_svid};

#[derive(Debug, Args)]
pub(super) struct CheckSvidArgs {
    /// The certificates, leaf first, in PEM or DER
    #[arg(long, value_name = "FILE", required_unless_present = "cases", conflicts_with = "cases")]
    certs: Option<PathBuf>,
    /// Its private key, which must be the leaf's
    #[arg(long, value_name = "FILE", requires = "certs")]
    key: Option<PathBuf>,
    /// Verify it against this bundle, as a peer does: a SPIFFE bundle document, or PEM
    #[arg(long, value_name = "FILE", requires_all = ["certs", "trust_domain"])]
    bundle: Option<PathBuf>,
    /// Whose bundle that is: another trust domain's SVIDs do not verify against it
    #[arg(long, value_name = "TD", requires = "bundle")]
    trust_domain: Option<TrustDomain>,
    /// Verify that it is this identity (repeatable: one of these)
    #[arg(long, value_name = "ID", requires = "bundle")]
    accept: Vec<SpiffeId>,
    /// Verify it for this time instead of now, for example 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", requires = "bundle", value_parser = humantime::parse_rfc3339)]
    at: Option<SystemTime>,
    #[command(flatten)]
    cases: CasesArgs,
}

pub(super) fn check_svid(args: &CheckSvidArgs) -> Result<(), Failed> {
    let Some(certs) = &args.certs else {
        let table = Table {
            lists: &["cases", "parse", "generated", "verify"],
            expected: |row| said(row, &["valid", "spiffe_id", "num_certs"]),
            agrees: says,
        };
        let mut mutations = Mutations::default();
        return cases::run(&args.cases, &table, |_, file, row| answer(file, row, &mut mutations));
    };
    let unreadable = |error| Failed::new(Exit::Config, error);
    let name = certs.display().to_string();
    let bytes = read(certs).map_err(unreadable)?;
    let key = args.key.as_deref().map(read).transpose().map_err(unreadable)?;
    let bundles = match (&args.bundle, &args.trust_domain) {
        (Some(path), Some(domain)) => {
            let loaded = bundle::load(path, domain);
            let loaded = loaded.with_context(|| format!("the bundle {}", path.display()));
            Some([loaded.map_err(unreadable)?])
        }
        _ => None,
    };
    let found = (|| {
        let chain = certificates(&bytes, encoding::is_pem(&bytes))?;
        let mut facts = checked(&chain, key.as_deref().map(|key| (key, encoding::is_pem(key))))?;
        if let Some(bundles) = &bundles {
            let accepted = (!args.accept.is_empty()).then_some(&args.accept[..]);
            let at = args.at.unwrap_or_else(SystemTime::now);
            facts = verify_svid(&chain, bundles, accepted, at)?;
        }
        anyhow::Ok(shown(&facts, chain.len()))
    })();
    if show(&name, valid(found.map_err(|error| format!("{error:#}"))))? {
        Ok(())
    } else {
        Err(invalid(&name))
    }
}

fn answer(file: &CaseFile, row: &Value, mutations: &mut Mutations) -> Result<Answer> {
    let found = if let Some(made) = row.get("recipe") {
        let chain = recipe::leaf(made)?;
        parse_svid(&chain).map(|facts| shown(&facts, chain.len())).map_err(anyhow::Error::from)
    } else if let Some(setup) = row.get("setup") {
        let made = making::setup(setup, row.get("chain"))?;
        let accepted = made.accepted.as_deref();
        verify_svid(&made.chain, &made.bundles, accepted, made.at)
            .map(|facts| shown(&facts, made.chain.len()))
            .map_err(anyhow::Error::from)
    } else {
        files(file, row, mutations)?
    };
    Ok(valid(found.map_err(|error| format!("{error:#}"))))
}

/// The outer error is the row's own, the inner one the verdict.
fn files(file: &CaseFile, row: &Value, mutations: &mut Mutations) -> Result<Result<Value>> {
    let pem = match file.text(row, "format") {
        Some("pem") => true,
        Some("der") => false,
        other => bail!("`format` is pem or der, and not {other:?}"),
    };
    let load =
        |field: &str| file.text(row, field).map(|path| read(&file.folder.join(path))).transpose();
    let mut bytes = load("certs")?.unwrap_or_default();
    if let Some(mutation) = file.text(row, "mutation") {
        let name = file.text(row, "name").unwrap_or_default();
        bytes = mutations.apply(mutation, name, bytes)?;
    }
    let key = load("key")?;
    // A row that speaks of its key means an SVID that has one.
    let key = row.get("key").map(|_| key.unwrap_or_default());
    Ok(certificates(&bytes, pem).and_then(|chain| {
        let facts = checked(&chain, key.as_deref().map(|key| (key, pem)))?;
        Ok(shown(&facts, chain.len()))
    }))
}

fn certificates(bytes: &[u8], pem: bool) -> Result<Vec<CertificateDer<'static>>> {
    let read = if pem { encoding::certificates_from_pem } else { encoding::certificates_from_der };
    read(bytes).context("the certificates")
}

/// The rules for its owner; `key` with whether it is PEM.
fn checked(chain: &[CertificateDer<'static>], key: Option<(&[u8], bool)>) -> Result<SvidFacts> {
    let facts = parse_svid(chain)?;
    if let Some((bytes, pem)) = key {
        let key = match pem {
            true => encoding::key_from_pem(bytes).context("the key")?,
            false => encoding::key_from_der(bytes),
        };
        check_key(chain, &key)?;
    }
    Ok(facts)
}

fn shown(facts: &SvidFacts, certificates: usize) -> Value {
    let date = |time| humantime::format_rfc3339_seconds(time).to_string();
    json!({
        "warning": facts.warning,
        "spiffe_id": facts.id,
        "num_certs": certificates,
        "serial": facts.serial,
        "not_before": date(facts.not_before),
        "not_after": date(facts.not_after),
        "subject": facts.subject,
        "dns_names": facts.dns_names,
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
