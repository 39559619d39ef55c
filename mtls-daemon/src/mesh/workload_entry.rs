//! `WorkloadEntry` and our own `NodeWorkload`, as they are written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Place, place};
use crate::policy::ObjectMeta;
use crate::policy::error::{Code, Report};
use crate::policy::field::{Field, Fields};
use crate::policy::metadata::{Document, name_of};

/// Istio's label by which a workload says that it speaks mesh mTLS.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

#[derive(Debug, Clone)]
pub struct WorkloadEntry {
    pub meta: ObjectMeta,
    pub address: IpAddr,
    /// The spec's labels; the object's own labels where the spec has none.
    pub labels: BTreeMap<String, String>,
    pub service_account: Option<Arc<str>>,
    pub ports: BTreeMap<String, u16>,
}

/// An endpoint's data, which `ServiceEntry` writes inline and `WorkloadEntry` as its spec.
#[derive(Debug, Clone)]
pub struct EndpointSpec {
    pub address: IpAddr,
    pub line: u32,
    pub path: String,
    pub labels: BTreeMap<String, String>,
    pub service_account: Option<Arc<str>>,
    pub ports: BTreeMap<String, u16>,
}

impl EndpointSpec {
    pub fn read(field: &Field<'_>, report: &mut Report) -> Option<Self> {
        let mut fields = field.fields(report)?;
        let spec = Self::read_fields(&mut fields, report);
        fields.finish(report);
        spec
    }

    fn read_fields(fields: &mut Fields<'_>, report: &mut Report) -> Option<Self> {
        let address = fields.need(report, "address").and_then(|f| f.ip(report));
        let labels = fields.take(report, "labels").map(|f| f.labels(report)).unwrap_or_default();
        let service_account =
            fields.take(report, "serviceAccount").and_then(|f| name_of(&f, report));
        let ports = fields.take(report, "ports").map(|f| f.named_ports(report)).unwrap_or_default();
        // Locality and weight only shift load, a network only matters to gateways.
        for known in ["network", "weight", "locality"] {
            fields.skip(known);
        }
        let spec = Self {
            address: address?,
            line: fields.line,
            path: fields.path.clone(),
            labels,
            service_account,
            ports,
        };
        if spec.speaks_mtls() && spec.service_account.is_none() {
            // Nothing could be verified about the server: refused rather than left unchecked.
            report.error(
                fields.line,
                &format!("{}.serviceAccount", fields.path),
                Code::FieldMissing,
                format!("is required with {TLS_MODE_LABEL}: istio: clients verify it"),
            );
        }
        Some(spec)
    }

    pub fn speaks_mtls(&self) -> bool {
        speaks_mtls(&self.labels)
    }
}

pub fn speaks_mtls(labels: &BTreeMap<String, String>) -> bool {
    labels.get(TLS_MODE_LABEL).is_some_and(|mode| mode == "istio")
}

impl WorkloadEntry {
    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let meta = document.meta.clone();
        let mut fields = document.spec(report)?;
        let spec = EndpointSpec::read_fields(&mut fields, report);
        fields.finish(report);
        let mut spec = spec?;
        // Istio merges the object's labels below the spec's.
        let mut labels = meta.labels.clone();
        labels.append(&mut spec.labels);
        if !spec.speaks_mtls() && speaks_mtls(&labels) && spec.service_account.is_none() {
            report.error(
                meta.origin.line,
                "spec.serviceAccount",
                Code::FieldMissing,
                format!("is required with {TLS_MODE_LABEL}: istio: clients verify it"),
            );
        }
        Some(Self {
            meta,
            address: spec.address,
            labels,
            service_account: spec.service_account,
            ports: spec.ports,
        })
    }
}

/// Which `WorkloadEntry` objects are one workload of a node, and where it runs there.
#[derive(Debug, Clone)]
pub struct NodeWorkloadEntry {
    pub meta: ObjectMeta,
    /// None: every daemon that reads the object.
    pub node: Option<Arc<str>>,
    pub place: Place,
    /// Of a workload of the host: the ports that are its own.
    pub host_ports: Option<Arc<[u16]>>,
    pub forward_client_cert: bool,
    /// Names of `WorkloadEntry` objects in the same namespace, with their lines.
    pub workload_entries: Vec<(Arc<str>, u32)>,
}

impl NodeWorkloadEntry {
    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let meta = document.meta.clone();
        let mut fields = document.spec(report)?;
        let node = fields.take(report, "node").and_then(|f| f.text(report)).map(Arc::from);
        let (place, host_ports) = place::read(&mut fields, report);
        let mut workload_entries: Vec<(Arc<str>, u32)> = Vec::new();
        if let Some(list) = fields.need(report, "workloadEntries") {
            for item in list.list(report) {
                let Some(name) = name_of(&item, report) else { continue };
                if workload_entries.iter().any(|(known, _)| *known == name) {
                    item.error(report, Code::FieldValue, format!("{name} is there twice"));
                } else {
                    workload_entries.push((name, item.line()));
                }
            }
            if workload_entries.is_empty() {
                list.error(report, Code::FieldValue, "must name at least one WorkloadEntry");
            }
        }
        let forward = fields.take(report, "forwardClientCert").map(|f| read_forward(&f, report));
        fields.finish(report);
        Some(Self {
            meta,
            node,
            place: place?,
            host_ports,
            forward_client_cert: forward.unwrap_or(true),
            workload_entries,
        })
    }
}

fn read_forward(field: &Field<'_>, report: &mut Report) -> bool {
    match field.text(report) {
        Some("http") | None => true,
        Some("off") => false,
        Some(other) => {
            let reason = format!("{other:?} is not one of http, off");
            field.error(report, Code::FieldValue, reason);
            true
        }
    }
}
