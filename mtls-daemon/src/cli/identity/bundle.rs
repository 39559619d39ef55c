//! `mtls-daemon identity check-bundle`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::super::cases::{self, Answer, CaseFile, CasesArgs, Table};
use super::{Exit, Failed, invalid, said, says, show, valid};
use crate::identity::{Bundle, SpiffeBundle, TrustDomain};
use crate::tls::svid::check_bundle as check_usable;

const FIELDS: [&str; 5] =
    ["valid", "x509_authorities", "jwt_authorities", "spiffe_sequence", "spiffe_refresh_hint"];

#[derive(Debug, Args)]
pub(super) struct CheckBundleArgs {
    /// A SPIFFE bundle document (JSON) or certificates in PEM
    #[arg(value_name = "FILE", required_unless_present = "cases", conflicts_with = "cases")]
    file: Option<PathBuf>,
    /// Whose bundle it is: no document says so itself
    #[arg(long, value_name = "TD", required_unless_present = "cases")]
    trust_domain: Option<TrustDomain>,
    #[command(flatten)]
    cases: CasesArgs,
}

pub(super) fn check_bundle(args: &CheckBundleArgs) -> Result<(), Failed> {
    let (Some(file), Some(domain)) = (&args.file, &args.trust_domain) else {
        let table = Table { expected: |row| said(row, &FIELDS), agrees: says, ..Table::default() };
        return cases::run(&args.cases, &table, answer);
    };
    let name = file.display().to_string();
    let content = read(file).map_err(|error| Failed::new(Exit::Config, error))?;
    let mut answer = valid(facts(&content, kind(&content), domain));
    answer.more.insert("trust_domain".to_owned(), domain.as_str().into());
    if show(&name, answer)? { Ok(()) } else { Err(invalid(&name)) }
}

#[derive(Clone, Copy)]
enum Kind {
    Jwks,
    Pem,
}

/// JSON begins with a brace, and PEM, also behind comments, does not.
fn kind(content: &[u8]) -> Kind {
    if content.trim_ascii_start().starts_with(b"{") { Kind::Jwks } else { Kind::Pem }
}

/// A file's bundle: a SPIFFE document or PEM, whichever it is.
pub(super) fn load(path: &Path, domain: &TrustDomain) -> Result<Bundle> {
    let content = read(path)?;
    Ok(match kind(&content) {
        Kind::Jwks => SpiffeBundle::parse(domain.clone(), &content)?.bundle,
        Kind::Pem => Bundle::from_pem(domain.clone(), &content)?,
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn answer(_: &str, file: &CaseFile, row: &Value) -> Result<Answer> {
    let content = match (file.text(row, "text"), file.text(row, "file")) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(path)) => read(&file.folder.join(path))?,
        _ => bail!("a row has a `text` or a `file`"),
    };
    let kind = match file.text(row, "kind") {
        Some("spiffe-bundle-jwks") => Kind::Jwks,
        Some("pem-bundle") => Kind::Pem,
        Some(other) => bail!("{other:?} is no kind: it is spiffe-bundle-jwks or pem-bundle"),
        None => kind(&content),
    };
    let domain = TrustDomain::parse(file.text(row, "trust_domain").unwrap_or("example.org"))?;
    Ok(valid(facts(&content, kind, &domain)))
}

fn facts(content: &[u8], kind: Kind, domain: &TrustDomain) -> Result<Value> {
    Ok(match kind {
        Kind::Jwks => {
            let document = SpiffeBundle::parse(domain.clone(), content)?;
            check_usable(&document.bundle)?;
            json!({
                "x509_authorities": document.bundle.anchors.len(),
                "jwt_authorities": document.jwt_authorities,
                "spiffe_sequence": document.sequence,
                "spiffe_refresh_hint": document.refresh_hint.map(|hint| hint.as_secs()),
            })
        }
        Kind::Pem => {
            let bundle = Bundle::from_pem(domain.clone(), content)?;
            check_usable(&bundle)?;
            json!({"x509_authorities": bundle.anchors.len()})
        }
    })
}
