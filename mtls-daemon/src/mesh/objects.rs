//! Every configuration object as it was read, good or refused, before they are put together.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::accept::Accepted;
use super::in_place::{self, InPlace};
use super::names::Answers;
use super::service_entry::ServiceEntry;
use super::workload_entry::{NodeWorkloadEntry, WorkloadEntry};
use crate::policy::authz::AuthorizationPolicy;
use crate::policy::error::{Code, ConfigError, Origin, Report};
use crate::policy::legacy::LegacyPolicy;
use crate::policy::metadata::Document;
use crate::policy::parse::{self, Limits};
use crate::policy::yaml::Node;
use crate::policy::{DestinationRule, ObjectMeta, PeerAuthentication};

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const LEGACY: &str = "authentication.istio.io";
const OURS: &str = "mtls-ebpf.dev";

/// One object that was read and is right by itself.
#[derive(Debug, Clone)]
pub enum Object {
    WorkloadEntry(WorkloadEntry),
    ServiceEntry(ServiceEntry),
    NodeWorkload(NodeWorkloadEntry),
    PeerAuthentication(PeerAuthentication),
    DestinationRule(DestinationRule),
    AuthorizationPolicy(AuthorizationPolicy),
    Legacy(LegacyPolicy),
}

impl Object {
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::WorkloadEntry(object) => &object.meta,
            Self::ServiceEntry(object) => &object.meta,
            Self::NodeWorkload(object) => &object.meta,
            Self::PeerAuthentication(object) => &object.meta,
            Self::DestinationRule(object) => &object.meta,
            Self::AuthorizationPolicy(object) => &object.meta,
            Self::Legacy(object) => &object.meta,
        }
    }
}

/// One document.
#[derive(Debug)]
pub(super) struct Read {
    pub origin: Origin,
    /// What was read, or what stands in for it.
    pub outcome: Result<Object, InPlace>,
}

/// Documents of all files, with everything that is wrong in them.
#[derive(Debug, Default)]
pub struct Objects {
    pub(super) read: Vec<Read>,
    /// Files of which nobody can say which objects they hold: what was read from them before is
    /// taken to be in them still.
    pub(super) unclear: BTreeSet<Arc<str>>,
    /// Some file could not be understood at all.
    pub(super) unreadable: bool,
    /// What is known of the names in `names_to_resolve`.
    pub names: Answers,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
    /// The subset that connections are routed to; see `Policy::subset`.
    pub subset: Option<Arc<str>>,
}

impl Objects {
    /// Reads every document of one file. `file` is what messages call it.
    pub fn add_file(&mut self, file: &str, text: &[u8], limits: &Limits) {
        let mut report = Report::new(file);
        let documents = parse::documents(text, limits, &mut report);
        // Whoever writes a file in place truncates it first: taken as it is, that would be a
        // configuration without its policy.
        if documents.as_ref().is_some_and(Vec::is_empty) {
            report.error(
                0,
                "",
                Code::FileEmpty,
                "empty: still being written? (else remove the file)",
            );
        }
        let documents = documents.unwrap_or_default();
        if documents.is_empty() {
            self.unclear.insert(report.file.clone());
            self.unreadable = true;
        }
        for node in documents.into_iter().flat_map(parse::objects) {
            self.add_document(&node, &mut report);
        }
        self.errors.append(&mut report.errors);
        self.warnings.append(&mut report.warnings);
    }

    /// A file that is there and cannot be read.
    pub fn add_unreadable(&mut self, error: ConfigError) {
        self.unclear.insert(error.file.clone());
        self.unreadable = true;
        self.errors.push(error);
    }

    /// Hosts whose addresses are not written down, also those of objects that may stay in force.
    pub fn names_to_resolve(&self, previous: Option<&Accepted>) -> BTreeSet<Arc<str>> {
        self.good()
            .chain(previous.into_iter().flat_map(|previous| previous.objects.values()))
            .filter_map(|object| match object {
                Object::ServiceEntry(entry) => Some(entry),
                _ => None,
            })
            .flat_map(ServiceEntry::names_to_resolve)
            .cloned()
            .collect()
    }

    fn add_document(&mut self, node: &Node, report: &mut Report) {
        let before = report.errors.len();
        let Some(document) = Document::open(node, report) else {
            // Neither its kind nor its name is sure.
            self.unclear.insert(report.file.clone());
            let origin = in_place::origin(node, report);
            let outcome = Err(in_place::of_node(node, &origin));
            self.read.push(Read { origin, outcome });
            return;
        };
        let mut origin = document.meta.origin.clone();
        if !in_place::ours(document.group) {
            // Not the object of ours that may have the same kind and name.
            origin.object = format!("{} of {}", origin.object, document.group).into();
        }
        let outcome = match supported(&document, report) {
            true => read(&document, report, before).ok_or_else(|| in_place::of(&document)),
            false => {
                let instead = in_place::of(&document);
                if matches!(instead, InPlace::Unknown) {
                    self.unclear.insert(report.file.clone());
                }
                Err(instead)
            }
        };
        self.read.push(Read { origin, outcome });
    }

    fn good(&self) -> impl Iterator<Item = &Object> {
        self.read.iter().filter_map(|read| read.outcome.as_ref().ok())
    }

    /// For questions about one kind alone.
    pub fn peer_authentications(&self) -> Vec<PeerAuthentication> {
        let pick = |object: &Object| match object {
            Object::PeerAuthentication(object) => Some(object.clone()),
            _ => None,
        };
        self.good().filter_map(pick).collect()
    }

    pub fn destination_rules(&self) -> Vec<DestinationRule> {
        let pick = |object: &Object| match object {
            Object::DestinationRule(object) => Some(object.clone()),
            _ => None,
        };
        self.good().filter_map(pick).collect()
    }
}

/// Kind and version are ones that are read here; everything else is refused aloud.
fn supported(document: &Document<'_>, report: &mut Report) -> bool {
    let line = document.meta.origin.line;
    let (group, kind) = (document.group, document.kind);
    let versions: &[&str] = match (group, kind) {
        (NETWORKING, "WorkloadEntry" | "ServiceEntry" | "DestinationRule") => {
            &["v1", "v1beta1", "v1alpha3"]
        }
        (SECURITY, "PeerAuthentication" | "AuthorizationPolicy") => &["v1", "v1beta1"],
        (LEGACY, "Policy" | "MeshPolicy") | (OURS, "NodeWorkload") => &["v1alpha1"],
        (SECURITY, "RequestAuthentication") => {
            let reason = "tokens are not validated here. The object by itself denies no request that \
                          has none, so nothing is closed in its place; AuthorizationPolicy objects \
                          with requestPrincipals never find one";
            report.error(line, "kind", Code::Unsupported, reason);
            return false;
        }
        _ => {
            let reason = format!(
                "{group}/{} {kind} is not supported, and is refused so that nothing it says is \
                 silently left out; supported: WorkloadEntry, ServiceEntry, NodeWorkload, \
                 PeerAuthentication, AuthorizationPolicy, DestinationRule",
                document.version
            );
            report.error(line, "kind", Code::ObjectKind, reason);
            return false;
        }
    };
    if !versions.contains(&document.version) {
        let known = versions.join(", ");
        let reason = format!("{kind} has no version {:?}: use {known}", document.version);
        report.error(line, "apiVersion", Code::ObjectKind, reason);
        return false;
    }
    true
}

/// None: refused. `before`: how many errors there were before this document.
fn read(document: &Document<'_>, report: &mut Report, before: usize) -> Option<Object> {
    let object = match document.kind {
        // Knows itself which errors refuse it: an unknown `when` key, say, is left out and told.
        "AuthorizationPolicy" if report.errors.len() == before => {
            return AuthorizationPolicy::read(document, report).map(Object::AuthorizationPolicy);
        }
        "AuthorizationPolicy" => {
            AuthorizationPolicy::read(document, report).map(Object::AuthorizationPolicy)
        }
        "WorkloadEntry" => WorkloadEntry::read(document, report).map(Object::WorkloadEntry),
        "ServiceEntry" => ServiceEntry::read(document, report).map(Object::ServiceEntry),
        "DestinationRule" => DestinationRule::read(document, report).map(Object::DestinationRule),
        "PeerAuthentication" => {
            PeerAuthentication::read(document, report).map(Object::PeerAuthentication)
        }
        "Policy" | "MeshPolicy" => LegacyPolicy::read(document, report).map(Object::Legacy),
        _ => NodeWorkloadEntry::read(document, report).map(Object::NodeWorkload),
    };
    object.filter(|_| report.errors.len() == before)
}
