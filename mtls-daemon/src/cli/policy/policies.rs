//! The policies of a row, read as the daemon reads its files.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cli::cases::CaseFile;
use crate::policy::authz::{Authorizations, AuthzSettings, RefusedPolicy};
use crate::policy::error::Report;
use crate::policy::metadata::Document;
use crate::policy::parse::{Limits, documents};
use crate::policy::{AuthorizationPolicy, PeerAuthentication, PeerAuthentications};

/// Objects of the two kinds that decide about connections. Other kinds in a row are somebody else's.
#[derive(Debug, Default)]
pub(super) struct Policies {
    pub authentications: Vec<PeerAuthentication>,
    pub authorizations: Vec<AuthorizationPolicy>,
    pub refused: Vec<RefusedPolicy>,
}

/// What stands beside the policies: `root_namespace`, `trust_domain`, `trust_domain_aliases`.
#[derive(Debug)]
pub(super) struct Mesh {
    pub root_namespace: String,
    pub trust_domain: String,
    pub aliases: Vec<String>,
}

impl Mesh {
    pub fn read(file: &CaseFile, row: &Value) -> Result<Self> {
        let text = |name, otherwise: &str| file.text(row, name).unwrap_or(otherwise).to_owned();
        Ok(Self {
            root_namespace: text("root_namespace", "istio-system"),
            trust_domain: text("trust_domain", "cluster.local"),
            aliases: match file.field(row, "trust_domain_aliases") {
                Some(list) => texts(list).context("trust_domain_aliases")?,
                None => Vec::new(),
            },
        })
    }

    pub fn settings(&self) -> AuthzSettings<'_> {
        AuthzSettings {
            root_namespace: &self.root_namespace,
            trust_domain: &self.trust_domain,
            aliases: &self.aliases,
        }
    }
}

impl Policies {
    /// The row's own and those of the whole file.
    pub fn read(file: &CaseFile, row: &Value) -> Result<Self> {
        let mut policies = Self::default();
        for list in [&file.top["objects"], &row["objects"], &row["policies"]] {
            if !list.is_null() {
                for object in list.as_array().context("objects and policies are lists")? {
                    policies.add(object)?;
                }
            }
        }
        Ok(policies)
    }

    fn add(&mut self, object: &Value) -> Result<()> {
        let known = matches!(
            object["kind"].as_str(),
            Some("AuthorizationPolicy" | "PeerAuthentication") | None
        );
        if !known {
            return Ok(());
        }
        with_document(object, |document, report| match document.kind {
            "AuthorizationPolicy" => match AuthorizationPolicy::read(document, report) {
                Some(object) => self.authorizations.push(object),
                None => self.refused.extend(RefusedPolicy::of(document, first_error(report))),
            },
            _ => {
                let object = PeerAuthentication::read(document, report);
                // One that is wrong opens nothing.
                let strict = || PeerAuthentication::refused(document);
                let sound = object.filter(|_| report.errors.is_empty());
                self.authentications.push(sound.unwrap_or_else(strict));
            }
        })
    }

    pub fn modes(&self, mesh: &Mesh) -> PeerAuthentications {
        PeerAuthentications::new(&mesh.root_namespace, self.authentications.clone())
    }

    pub fn compile(self, mesh: &Mesh) -> Authorizations {
        Authorizations::new(&mesh.settings(), self.authorizations, self.refused)
    }
}

/// Opens one object. JSON is YAML, so it goes through the reader of files.
pub(super) fn with_document<T>(
    object: &Value,
    read: impl FnOnce(&Document<'_>, &mut Report) -> T,
) -> Result<T> {
    let mut object = object.clone();
    // No API server accepts names with spaces; some lists of examples have them.
    if let Some(name) = object["metadata"]["name"].as_str() {
        object["metadata"]["name"] = name.replace(' ', "-").into();
    }
    let mut report = Report::new("row");
    let nodes = documents(object.to_string().as_bytes(), &Limits::default(), &mut report);
    let document =
        nodes.as_ref().and_then(|n| n.first()).and_then(|n| Document::open(n, &mut report));
    match document {
        Some(document) => Ok(read(&document, &mut report)),
        None => bail!("{}", first_error(&report)),
    }
}

pub(super) fn first_error(report: &Report) -> String {
    report.errors.first().map(ToString::to_string).unwrap_or_default()
}

/// A list of strings.
pub(super) fn texts(list: &Value) -> Result<Vec<String>> {
    let list = list.as_array().with_context(|| format!("{list} is not a list"))?;
    let text = |value: &Value| {
        value.as_str().map(str::to_owned).with_context(|| format!("{value} is not a string"))
    };
    list.iter().map(text).collect()
}

pub(super) fn text<'v>(value: &'v Value, field: &str) -> Result<&'v str> {
    value[field].as_str().with_context(|| format!("{field} is not there, or not a string"))
}

pub(super) fn labels(value: &Value) -> Result<BTreeMap<String, String>> {
    if value.is_null() {
        return Ok(BTreeMap::new());
    }
    serde_json::from_value(value.clone()).context("labels are strings by name")
}
