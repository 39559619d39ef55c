//! What stands in for an object that was refused and has no earlier version: closed, never open, and
//! no more of it than the object could have meant.

use crate::policy::authz::RefusedPolicy;
use crate::policy::error::{Origin, Report};
use crate::policy::field::Field;
use crate::policy::metadata::{Document, name_of};
use crate::policy::near::nearest;
use crate::policy::yaml::{Node, Value};
use crate::policy::{DestinationRule, ObjectMeta, PeerAuthentication};

#[derive(Debug, Clone)]
pub enum InPlace {
    /// An AuthorizationPolicy denies what it selects.
    Denied(RefusedPolicy),
    /// A PeerAuthentication means STRICT for what it selects.
    Strict(PeerAuthentication),
    /// Connections to a DestinationRule's host are refused.
    Closed(DestinationRule),
    /// An object that says where somebody is: nothing can stand in for it.
    Unplaced,
    /// It closes nothing by itself, whatever it says.
    Nothing,
    /// Nobody can tell what it is.
    Unknown,
}

/// Istio's kinds that open and close nothing here, whatever they say.
const HARMLESS: [&str; 10] = [
    "RequestAuthentication",
    "VirtualService",
    "Gateway",
    "Sidecar",
    "EnvoyFilter",
    "WorkloadGroup",
    "ProxyConfig",
    "Telemetry",
    "WasmPlugin",
    "IstioOperator",
];

impl InPlace {
    /// What is said about it.
    pub fn says(&self) -> &'static str {
        match self {
            Self::Denied(_) => "refused, without an earlier version: what it selects is denied",
            Self::Strict(_) => "refused, without an earlier version: what it selects is STRICT",
            Self::Closed(_) => {
                "refused, without an earlier version: connections to its host are refused"
            }
            Self::Unplaced => "refused, without an earlier version: it does not exist",
            Self::Nothing => "refused: nothing it says has an effect",
            Self::Unknown => {
                "refused, and nobody can tell what it is: objects read from this file before stay \
                 in force"
            }
        }
    }
}

/// Of a document whose object was refused.
pub(super) fn of(document: &Document<'_>) -> InPlace {
    let origin = &document.meta.origin;
    if !ours(document.group) {
        return InPlace::Nothing;
    }
    match document.kind {
        "AuthorizationPolicy" => {
            RefusedPolicy::of(document, format!("{} is refused", origin.place()))
                .map_or(InPlace::Nothing, InPlace::Denied)
        }
        "PeerAuthentication" | "Policy" | "MeshPolicy" => {
            InPlace::Strict(PeerAuthentication::refused(document))
        }
        "DestinationRule" => InPlace::Closed(DestinationRule::refused(document)),
        "WorkloadEntry" | "ServiceEntry" | "NodeWorkload" => InPlace::Unplaced,
        kind if HARMLESS.contains(&kind) || cores(document.group, kind) => InPlace::Nothing,
        _ => InPlace::Unknown,
    }
}

/// Of a document whose very name could not be read: everything in its namespace.
pub(super) fn of_node(node: &Node, origin: &Origin) -> InPlace {
    let kind = text(node, &["kind"]);
    let group = text(node, &["apiVersion"]).map(|api| api.split_once('/').map_or("", |(g, _)| g));
    if group.is_some_and(|group| !ours(group)) {
        return InPlace::Nothing;
    }
    // A namespace that cannot be one is nobody's: whose it was meant to be is not known.
    let meta = || {
        let Value::Map(metadata) = &find(node, &["metadata"])?.value else { return None };
        let namespace = match metadata.iter().find(|entry| entry.key == "namespace") {
            None => "default".into(),
            Some(entry) => name_of(&Field::root(&entry.node), &mut Report::default())?,
        };
        Some(ObjectMeta::unnamed(&namespace, origin.clone()))
    };
    match (kind, meta()) {
        (Some("AuthorizationPolicy"), Some(meta)) => {
            let reason = format!("{} is refused", meta.origin.place()).into();
            InPlace::Denied(RefusedPolicy { meta, selector: None, reason })
        }
        (Some("PeerAuthentication" | "Policy" | "MeshPolicy"), Some(meta)) => {
            InPlace::Strict(PeerAuthentication::strict(meta))
        }
        (Some("DestinationRule"), Some(meta)) => InPlace::Closed(DestinationRule::closed(meta)),
        (Some("WorkloadEntry" | "ServiceEntry" | "NodeWorkload"), _) => InPlace::Unplaced,
        (Some(kind), _) if HARMLESS.contains(&kind) => InPlace::Nothing,
        (Some(kind), _) if group.is_some_and(|group| cores(group, kind)) => InPlace::Nothing,
        _ => InPlace::Unknown,
    }
}

/// What messages call a document without a name.
pub(super) fn origin(node: &Node, report: &Report) -> Origin {
    let kind = text(node, &["kind"]).unwrap_or("object");
    let object = if report.object.contains(' ') {
        report.object.clone()
    } else {
        format!("{kind} at {}:{}", report.file, node.line).into()
    };
    Origin { file: report.file.clone(), line: node.line, object }
}

/// A misspelt kind of these groups can be anything; a misspelt group is taken for the one that was meant.
pub(super) fn ours(group: &str) -> bool {
    const GROUPS: [&str; 4] =
        ["security.istio.io", "networking.istio.io", "authentication.istio.io", "mtls-ebpf.dev"];
    group.is_empty() || group.ends_with("istio.io") || nearest(group, GROUPS.into_iter()).is_some()
}

/// A kind of Kubernetes' own, such as a Service, in `v1`, which has no group: not one of ours whose
/// group was forgotten.
fn cores(group: &str, kind: &str) -> bool {
    const READ: [&str; 8] = [
        "AuthorizationPolicy",
        "PeerAuthentication",
        "Policy",
        "MeshPolicy",
        "DestinationRule",
        "WorkloadEntry",
        "ServiceEntry",
        "NodeWorkload",
    ];
    group.is_empty() && !kind.ends_with("List") && nearest(kind, READ.into_iter()).is_none()
}

fn text<'n>(node: &'n Node, path: &[&str]) -> Option<&'n str> {
    Field::root(find(node, path)?).text(&mut Report::default())
}

fn find<'n>(node: &'n Node, path: &[&str]) -> Option<&'n Node> {
    path.iter().try_fold(node, |node, name| match &node.value {
        Value::Map(entries) => entries.iter().find(|e| e.key == *name).map(|entry| &entry.node),
        _ => None,
    })
}
