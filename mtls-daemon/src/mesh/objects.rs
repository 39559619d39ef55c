//! Every configuration object that was read, by kind, before they are put together.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::names::Answers;
use super::service_entry::ServiceEntry;
use super::workload_entry::{NodeWorkloadEntry, WorkloadEntry};
use crate::policy::authz::{AuthorizationPolicy, RefusedPolicy};
use crate::policy::error::{Code, ConfigError, Origin, Report};
use crate::policy::metadata::Document;
use crate::policy::parse::{self, Limits};
use crate::policy::yaml::Node;
use crate::policy::{DestinationRule, PeerAuthentication};

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const OURS: &str = "mtls-ebpf.dev";

/// Objects of all files, with everything that is wrong in them.
#[derive(Debug, Default)]
pub struct Objects {
    pub workload_entries: Vec<WorkloadEntry>,
    pub service_entries: Vec<ServiceEntry>,
    pub node_workloads: Vec<NodeWorkloadEntry>,
    pub peer_authentications: Vec<PeerAuthentication>,
    pub destination_rules: Vec<DestinationRule>,
    /// What is known of the names in `names_to_resolve`.
    pub names: Answers,
    pub authorization_policies: Vec<AuthorizationPolicy>,
    pub refused_policies: Vec<RefusedPolicy>,
    /// One error refuses all objects.
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
    /// The subset that connections are routed to; see `Policy::subset`.
    pub subset: Option<Arc<str>>,
    seen: HashMap<String, Origin>,
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
        for node in documents.unwrap_or_default() {
            self.add_document(&node, &mut report);
        }
        self.errors.append(&mut report.errors);
        self.warnings.append(&mut report.warnings);
    }

    /// Hosts whose addresses are not written down.
    pub fn names_to_resolve(&self) -> BTreeSet<Arc<str>> {
        self.service_entries.iter().flat_map(ServiceEntry::names_to_resolve).cloned().collect()
    }

    fn add_document(&mut self, node: &Node, report: &mut Report) {
        let Some(document) = Document::open(node, report) else { return };
        let line = node.line;
        let (group, kind) = (document.group, document.kind);
        let versions: &[&str] = match (group, kind) {
            (NETWORKING, "WorkloadEntry" | "ServiceEntry" | "DestinationRule") => {
                &["v1", "v1beta1", "v1alpha3"]
            }
            (SECURITY, "PeerAuthentication" | "AuthorizationPolicy") => &["v1", "v1beta1"],
            (OURS, "NodeWorkload") => &["v1alpha1"],
            _ => {
                let reason = format!(
                    "{group}/{} {kind} is not supported, and is refused so that nothing it says is \
                     silently left out; supported: WorkloadEntry, ServiceEntry, NodeWorkload, \
                     PeerAuthentication, AuthorizationPolicy, DestinationRule",
                    document.version
                );
                report.error(line, "kind", Code::ObjectKind, reason);
                return;
            }
        };
        if !versions.contains(&document.version) {
            let reason = format!(
                "{kind} has no version {:?}: use {}",
                document.version,
                versions.join(", ")
            );
            report.error(line, "apiVersion", Code::ObjectKind, reason);
            return;
        }
        let origin = &document.meta.origin;
        if let Some(first) = self.seen.get(&*origin.object) {
            let reason = format!("is there twice: first at {}:{}", first.file, first.line);
            report.error(line, "metadata.name", Code::ObjectDuplicate, reason);
            return;
        }
        self.seen.insert(origin.object.to_string(), origin.clone());
        match kind {
            "WorkloadEntry" => self.workload_entries.extend(WorkloadEntry::read(&document, report)),
            "ServiceEntry" => self.service_entries.extend(ServiceEntry::read(&document, report)),
            "DestinationRule" => {
                self.destination_rules.extend(DestinationRule::read(&document, report));
            }
            "AuthorizationPolicy" => {
                self.authorization_policies.extend(AuthorizationPolicy::read(&document, report));
            }
            "PeerAuthentication" => {
                self.peer_authentications.extend(PeerAuthentication::read(&document, report));
            }
            _ => self.node_workloads.extend(NodeWorkloadEntry::read(&document, report)),
        }
    }
}
