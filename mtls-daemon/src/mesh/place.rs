//! Where a `NodeWorkload` says that it runs: in a network namespace of its own, or as a cgroup of the host.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Cgroup, Place};
use crate::policy::error::{Code, Report};
use crate::policy::field::{Field, Fields};

/// Where a named network namespace is bound, as `ip netns add` does it.
const NETNS_DIRECTORY: &str = "/run/netns";
/// The kernel programs look this far below the root (mtls-common).
const DEPTH: usize = mtls_common::names::MAX_CGROUP_DEPTH as usize;
/// What units that hold processes end in.
const UNITS: [&str; 3] = [".service", ".scope", ".slice"];

/// The place, and the ports that go with one on the host.
pub(super) fn read(
    fields: &mut Fields<'_>,
    report: &mut Report,
) -> (Option<Place>, Option<Arc<[u16]>>) {
    let cgroup = fields.take(report, "cgroup");
    let unit = fields.take(report, "systemdUnit");
    let ports = fields.take(report, "ports");
    let on_host = match (&cgroup, &unit) {
        (None, None) => {
            if let Some(ports) = ports {
                let reason = "is for workloads of the host (cgroup, systemdUnit): in a network \
                              namespace of its own a workload has all ports";
                ports.error(report, Code::FieldValue, reason);
            }
            let field = fields.need(report, "networkNamespace");
            let place = field.and_then(|f| read_netns(&f, report)).map(Place::Namespace);
            return (place, None);
        }
        (Some(cgroup), None) => read_path(cgroup, report),
        (None, Some(unit)) => read_unit(unit, report),
        (Some(_), Some(unit)) => {
            unit.error(report, Code::FieldValue, "is one place too many: cgroup is there as well");
            None
        }
    };
    if let Some(namespace) = fields.take(report, "networkNamespace") {
        let reason = "is one place too many: a cgroup is in the host's own network namespace";
        namespace.error(report, Code::FieldValue, reason);
    }
    let Some(ports) = ports else {
        // Not every port by default: that would take what is the host's.
        let reason = "is required with a cgroup: the ports that it listens on, [] for none";
        report.error(fields.line, &format!("{}.ports", fields.path), Code::FieldMissing, reason);
        return (None, None);
    };
    let mut numbers: Vec<u16> = Vec::new();
    for item in ports.list(report) {
        let Some(number) = item.port(report) else { continue };
        if numbers.contains(&number) {
            item.error(report, Code::FieldValue, format!("{number} is there twice"));
        }
        numbers.push(number);
    }
    (on_host.map(Place::Host), Some(numbers.into()))
}

fn read_path(field: &Field<'_>, report: &mut Report) -> Option<Cgroup> {
    let text = field.text(report)?;
    // As /proc/PID/cgroup shows it, or as a path below the root.
    let path = text.trim_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let reason = if path.is_empty() {
        "the root is everybody's: name a cgroup below it".to_owned()
    } else if parts.iter().any(|part| part.is_empty() || matches!(*part, "." | "..")) {
        format!("{text:?} is no path below the cgroup root")
    } else if path.contains('\0') {
        "no path has a zero byte".to_owned()
    } else if parts.len() > DEPTH {
        format!("is {} levels below the cgroup root: {DEPTH} are looked at", parts.len())
    } else {
        return Some(Cgroup::Path(path.into()));
    };
    field.error(report, Code::FieldValue, reason);
    None
}

fn read_unit(field: &Field<'_>, report: &mut Report) -> Option<Cgroup> {
    let text = field.text(report)?;
    let stem = UNITS.iter().find_map(|end| text.strip_suffix(end));
    if stem.is_some_and(|stem| !stem.is_empty() && !stem.contains(['/', '\0'])) {
        return Some(Cgroup::Unit(text.into()));
    }
    let reason = format!("{text:?} is not the name of a unit: web.service, a scope or a slice");
    field.error(report, Code::FieldValue, reason);
    None
}

fn read_netns(field: &Field<'_>, report: &mut Report) -> Option<PathBuf> {
    let text = field.text(report)?;
    if text.starts_with('/') && !text.contains('\0') && !text.split('/').any(|part| part == "..") {
        // The same directory under its old name: one namespace has one path, so that two objects
        // that claim it are seen to do so.
        let path = PathBuf::from(text);
        return Some(match path.strip_prefix("/var/run") {
            Ok(rest) => PathBuf::from("/run").join(rest),
            Err(_) => path,
        });
    }
    if !text.contains(['/', '\0']) && text != "." && text != ".." {
        return Some(PathBuf::from(NETNS_DIRECTORY).join(text));
    }
    field.error(
        report,
        Code::FieldValue,
        format!("{text:?} is neither an absolute path nor a name in {NETNS_DIRECTORY}"),
    );
    None
}
