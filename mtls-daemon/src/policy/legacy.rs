//! `authentication.istio.io/v1alpha1` `Policy` and `MeshPolicy`: what `PeerAuthentication` replaced.
//! Read and converted (policy.md 1.13), with a warning that names the replacement.

use std::fmt;
use std::sync::Arc;

use super::Mode;
use super::error::{Code, Report};
use super::field::{Field, Fields};
use super::metadata::{Document, ObjectMeta};
use super::peer_authentication::{PeerAuthentication, Standing};

#[derive(Debug, Clone)]
pub struct LegacyPolicy {
    pub meta: ObjectMeta,
    /// `MeshPolicy`: every namespace.
    pub mesh: bool,
    pub mode: Mode,
    /// Services of the namespace; none: all of it.
    pub targets: Vec<Target>,
}

/// A service, and the service ports that are meant; none: every port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: Arc<str>,
    pub ports: Vec<ServicePortName>,
    pub line: u32,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServicePortName {
    Number(u16),
    Name(Arc<str>),
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl LegacyPolicy {
    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let meta = document.meta.clone();
        let mesh = document.kind == "MeshPolicy";
        let line = meta.origin.line;
        let mut fields = document.spec(report)?;
        let mode = read_peers(&mut fields, report);
        let targets: Vec<Target> = fields
            .take(report, "targets")
            .map(|field| field.list(report).iter().filter_map(|t| read_target(t, report)).collect())
            .unwrap_or_default();
        refuse_end_users(&mut fields, report);
        fields.finish(report);
        if mesh && !targets.is_empty() {
            report.error(line, "spec.targets", Code::FieldValue, "a MeshPolicy has no targets");
        }
        if targets.is_empty() && &*meta.name != "default" {
            let reason = "a policy without targets is called \"default\"";
            report.error(line, "metadata.name", Code::FieldValue, reason);
        }
        let instead = match (mesh, targets.is_empty()) {
            (true, _) => "in the root namespace",
            (false, true) => "without a selector",
            (false, false) => "with a selector of the service's labels",
        };
        let reason = format!(
            "{} is long gone from Istio and is converted: write a security.istio.io/v1 \
             PeerAuthentication {instead}",
            document.kind
        );
        report.warn(line, "apiVersion", Code::WarnDeprecated, reason);
        Some(Self { meta, mesh, mode: mode?, targets })
    }

    /// One object for each target, given what it resolves to: a selector and workload ports.
    pub fn convert(
        &self,
        root_namespace: &str,
        mut resolve: impl FnMut(&Target) -> Result<Resolved, String>,
    ) -> Result<Vec<PeerAuthentication>, (String, String)> {
        let mut base = PeerAuthentication::strict(self.meta.clone());
        base.standing = Standing::Converted;
        base.mode = Some(self.mode);
        if self.mesh {
            base.meta.namespace = root_namespace.into();
        }
        if self.targets.is_empty() {
            return Ok(vec![base]);
        }
        let convert = |target: &Target| {
            let found = resolve(target).map_err(|reason| (target.path.clone(), reason))?;
            let mut object = base.clone();
            object.selector = found.selector;
            if !target.ports.is_empty() {
                object.mode = None;
                object.ports =
                    found.ports.into_iter().map(|port| (port, Some(self.mode))).collect();
            }
            Ok(object)
        };
        self.targets.iter().map(convert).collect()
    }

    /// What stands in for it when it cannot be in force.
    pub fn into_refused(self) -> PeerAuthentication {
        PeerAuthentication::strict(self.meta)
    }
}

/// What a target's service says about its workloads.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    pub selector: std::collections::BTreeMap<String, String>,
    /// The workload ports behind the target's service ports.
    pub ports: Vec<u16>,
}

/// No peers: DISABLE. `mtls: {}`, also written empty: STRICT.
fn read_peers(fields: &mut Fields<'_>, report: &mut Report) -> Option<Mode> {
    let optional = fields.take(report, "peerIsOptional").and_then(|f| f.boolean(report));
    let Some(peers) = fields.take(report, "peers") else { return Some(Mode::Disable) };
    let mut found = Some(Mode::Disable);
    let list = peers.list(report);
    if list.len() > 1 {
        peers.error(report, Code::Unsupported, "only one peer method is supported");
        return None;
    }
    for peer in list {
        let mut method = peer.fields(report)?;
        found = match method.take_or_null("mtls") {
            Some(None) => Some(Mode::Strict),
            Some(Some(mtls)) => read_mode(&mtls, report),
            None => {
                peer.error(report, Code::Unsupported, "only mtls is supported as a peer");
                None
            }
        };
        method.finish(report);
    }
    match (found, optional) {
        (Some(Mode::Strict), Some(true)) => Some(Mode::Permissive),
        (found, _) => found,
    }
}

fn read_mode(mtls: &Field<'_>, report: &mut Report) -> Option<Mode> {
    let mut fields = mtls.fields(report)?;
    let mode = match fields.take(report, "mode") {
        None => Some(Mode::Strict),
        Some(field) => match field.string(report)? {
            "STRICT" => Some(Mode::Strict),
            "PERMISSIVE" => Some(Mode::Permissive),
            other => {
                let reason = format!("{other:?} is not one of STRICT, PERMISSIVE");
                field.error(report, Code::FieldValue, reason);
                None
            }
        },
    };
    // The old way to write PERMISSIVE.
    let allow_tls = fields.take(report, "allowTls").and_then(|f| f.boolean(report));
    fields.finish(report);
    if allow_tls == Some(true) { Some(Mode::Permissive) } else { mode }
}

fn read_target(field: &Field<'_>, report: &mut Report) -> Option<Target> {
    let mut fields = field.fields(report)?;
    let name = fields.need(report, "name").and_then(|f| f.text(report));
    let mut ports = Vec::new();
    for port in fields.take(report, "ports").map(|f| f.list(report)).unwrap_or_default() {
        let Some(mut entry) = port.fields(report) else { continue };
        let number = entry.take(report, "number").and_then(|f| f.port(report));
        let name = entry.take(report, "name").and_then(|f| f.text(report));
        match (number, name) {
            (Some(number), None) => ports.push(ServicePortName::Number(number)),
            (None, Some(name)) => ports.push(ServicePortName::Name(name.into())),
            _ => port.error(report, Code::FieldValue, "must have a number or a name"),
        }
        entry.finish(report);
    }
    fields.finish(report);
    Some(Target { name: name?.into(), ports, line: field.line(), path: field.path.clone() })
}

/// Tokens: not validated here.
fn refuse_end_users(fields: &mut Fields<'_>, report: &mut Report) {
    for name in ["origins", "originIsOptional"] {
        if let Some(field) = fields.take(report, name) {
            field.error(report, Code::Unsupported, "tokens of end users are not validated here");
        }
    }
    if let Some(field) = fields.take(report, "principalBinding")
        && field.string(report).is_some_and(|binding| binding != "USE_PEER")
    {
        field.error(report, Code::Unsupported, "only USE_PEER is supported");
    }
}
