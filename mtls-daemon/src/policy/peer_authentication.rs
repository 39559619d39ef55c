//! `PeerAuthentication`: what a server accepts (policy.md 1).

use std::collections::BTreeMap;

use super::Mode;
use super::error::{Code, Report};
use super::field::Field;
use super::metadata::{Document, ObjectMeta};

/// How an object came to be, in the order in which objects of one scope go before each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It stands in for one that was refused: STRICT, before whatever else is in its scope.
    Refused,
    Given,
    /// Made of a legacy policy, which it replaced.
    Converted,
}

/// One object. A mode of None is UNSET: it inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    pub meta: ObjectMeta,
    /// `matchLabels`; empty: the whole namespace, or the mesh in the root namespace.
    pub selector: BTreeMap<String, String>,
    pub mode: Option<Mode>,
    /// By workload (container) port, not service port (policy.md 1.6).
    pub ports: BTreeMap<u16, Option<Mode>>,
    pub standing: Standing,
}

impl PeerAuthentication {
    /// Reads and validates (policy.md 1.7).
    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let mut object = Self {
            meta: document.meta.clone(),
            selector: BTreeMap::new(),
            mode: None,
            ports: BTreeMap::new(),
            standing: Standing::Given,
        };
        let mut fields = document.spec(report)?;
        if let Some(selector) = fields.take(report, "selector") {
            object.selector = read_selector(&selector, report);
        }
        if let Some(mtls) = fields.take(report, "mtls") {
            object.mode = read_mtls(&mtls, report);
        }
        if let Some(ports) = fields.take(report, "portLevelMtls") {
            let entries = ports.entries(report);
            if object.selector.is_empty() {
                ports.error(
                    report,
                    Code::FieldValue,
                    "port modes need a selector: they belong to workloads, not to a namespace or mesh",
                );
            } else if entries.is_empty() {
                ports.error(report, Code::FieldValue, "must name at least one port");
            }
            for (key, field) in entries {
                // Only the usual writing: "080" and "+80" would be 80 once more.
                let port = key.parse::<u16>().ok().filter(|p| *p > 0 && p.to_string() == key);
                let Some(port) = port else {
                    field.error(report, Code::FieldValue, "the key is not a port, 1-65535");
                    continue;
                };
                if object.ports.insert(port, read_mtls(&field, report)).is_some() {
                    field.error(report, Code::FieldValue, "the port is there twice");
                }
            }
        }
        fields.finish(report);
        Some(object)
    }

    /// STRICT for all of the scope that `meta` is in.
    pub fn strict(meta: ObjectMeta) -> Self {
        let (selector, ports) = (BTreeMap::new(), BTreeMap::new());
        Self { meta, selector, mode: Some(Mode::Strict), ports, standing: Standing::Refused }
    }

    /// What stands in for a document that was refused: STRICT for what it selects, for its whole
    /// scope where that cannot be read.
    pub fn refused(document: &Document<'_>) -> Self {
        // What is wrong was reported when the object was read.
        let mut unheard = Report::default();
        let mut object = Self::strict(document.meta.clone());
        let Some(mut fields) = document.spec(&mut unheard) else { return object };
        if let Some(selector) = fields.take(&mut unheard, "selector") {
            let labels = read_selector(&selector, &mut unheard);
            if unheard.errors.is_empty() && unheard.warnings.is_empty() {
                object.selector = labels;
            }
        }
        object
    }

    /// The same for an object that is right by itself.
    pub fn into_refused(self) -> Self {
        Self { selector: self.selector, ..Self::strict(self.meta) }
    }
}

fn read_selector(field: &Field<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let Some(mut fields) = field.fields(report) else { return BTreeMap::new() };
    let labels = fields
        .take(report, "matchLabels")
        .map(|labels| labels.selector_labels(report))
        .unwrap_or_default();
    if labels.is_empty() {
        field.warn(
            report,
            Code::WarnSuspicious,
            "selects by no label, so the object applies to its whole namespace",
        );
    }
    fields.finish(report);
    labels
}

fn read_mtls(field: &Field<'_>, report: &mut Report) -> Option<Mode> {
    let mut fields = field.fields(report)?;
    let mode = fields.take(report, "mode").and_then(|mode| match mode.string(report)? {
        "UNSET" => None,
        "DISABLE" => Some(Mode::Disable),
        "PERMISSIVE" => Some(Mode::Permissive),
        "STRICT" => Some(Mode::Strict),
        other => {
            mode.error(
                report,
                Code::FieldValue,
                format!("{other:?} is not one of UNSET, DISABLE, PERMISSIVE, STRICT"),
            );
            None
        }
    });
    fields.finish(report);
    mode
}
