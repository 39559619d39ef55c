//! `ServiceEntry`, as it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::ServicePort;
use super::workload_entry::EndpointSpec;
use crate::policy::ObjectMeta;
use crate::policy::error::{Code, Report};
use crate::policy::export::ExportTo;
use crate::policy::field::{Field, Fields};
use crate::policy::host;
use crate::policy::metadata::Document;

#[derive(Debug, Clone)]
pub struct ServiceEntry {
    pub meta: ObjectMeta,
    pub hosts: Vec<Arc<str>>,
    /// With their lines.
    pub addresses: Vec<(IpAddr, u32)>,
    pub ports: Vec<ServicePort>,
    pub external: bool,
    pub endpoints: Vec<EndpointSpec>,
    /// Over the `WorkloadEntry` objects of the same namespace.
    pub selector: Option<BTreeMap<String, String>>,
    pub export_to: ExportTo,
    pub subject_alt_names: Vec<String>,
    pub resolution: Resolution,
    /// It is also for servers outside whose addresses it does not say: their connections are left as
    /// they are, whatever rules say.
    pub everywhere: bool,
}

/// Where endpoints come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// `endpoints` or `workloadSelector`.
    Static,
    /// `addresses` are the servers' own: each connection goes where the client sent it.
    None,
    /// The hosts' names.
    Dns,
}

impl ServiceEntry {
    /// Hosts whose addresses are not written down.
    pub fn names_to_resolve(&self) -> impl Iterator<Item = &Arc<str>> {
        self.hosts.iter().filter(|_| self.resolution == Resolution::Dns)
    }

    /// Addresses that stand for the service and are no server's own.
    pub fn virtual_addresses(&self) -> &[(IpAddr, u32)] {
        if self.resolution == Resolution::None { &[] } else { &self.addresses }
    }

    /// Addresses that the entry names as servers' own: several entries may name one.
    pub fn server_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let own = if self.resolution == Resolution::None { &*self.addresses } else { &[] };
        let inline = self.endpoints.iter().map(|endpoint| endpoint.address);
        inline.chain(own.iter().map(|(address, _)| *address))
    }

    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let meta = document.meta.clone();
        let mut fields = document.spec(report)?;
        let hosts =
            fields.need(report, "hosts").map(|f| read_hosts(&f, report)).unwrap_or_default();
        let addresses_field = fields.take(report, "addresses");
        let ports =
            fields.need(report, "ports").map(|f| read_ports(&f, report)).unwrap_or_default();
        let external = fields.take(report, "location").is_none_or(|f| read_external(&f, report));
        let endpoints_field = fields.take(report, "endpoints");
        let endpoints = endpoints_field
            .as_ref()
            .map(|f| f.list(report).iter().filter_map(|e| EndpointSpec::read(e, report)).collect())
            .unwrap_or_default();
        let selector_field = fields.take(report, "workloadSelector");
        let selector = selector_field.as_ref().and_then(|f| read_selector(f, report));
        if let (Some(field), Some(_)) = (&selector_field, &endpoints_field) {
            field.error(report, Code::FieldValue, "only one of workloadSelector and endpoints");
        }
        let has_endpoints = endpoints_field.is_some() || selector_field.is_some();
        let resolution = read_resolution(&mut fields, has_endpoints, report);
        let outside = external && resolution == Resolution::None;
        let addresses = addresses_field
            .as_ref()
            .map(|f| read_addresses(f, outside, report))
            .unwrap_or_default();
        check_resolution(resolution, &hosts, addresses.is_empty() && !outside, report, fields.line);
        let everywhere = outside && (addresses.is_empty() || has_range(&addresses_field, report));
        if everywhere {
            let reason = "NONE without single addresses: nothing here goes by names or ranges, so \
                          connections go to where the client asks for, as they are";
            report.warn(fields.line, "spec.resolution", Code::WarnIgnored, reason);
        }
        let export_to = ExportTo::read(fields.take(report, "exportTo"), &meta.namespace, report);
        let subject_alt_names = fields
            .take(report, "subjectAltNames")
            .map(|f| f.texts(report).into_iter().map(|(_, text)| text.to_owned()).collect())
            .unwrap_or_default();
        fields.finish(report);
        Some(Self {
            meta,
            hosts,
            addresses,
            ports,
            external,
            endpoints,
            selector,
            export_to,
            subject_alt_names,
            resolution,
            everywhere,
        })
    }
}

fn read_hosts(field: &Field<'_>, report: &mut Report) -> Vec<Arc<str>> {
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for (item, text) in field.texts(report) {
        if text == "*" || !host::is_valid(text) {
            item.error(report, Code::FieldValue, format!("{text:?} is no host name"));
            continue;
        }
        if !text.contains('.') {
            item.warn(
                report,
                Code::WarnSuspicious,
                "is a short name: only a DestinationRule with a wildcard can match it; give the full name",
            );
        }
        // DNS names have no case.
        let text = text.to_ascii_lowercase();
        if hosts.iter().any(|known| **known == *text) {
            item.error(report, Code::FieldValue, format!("{text} is there twice"));
            continue;
        }
        hosts.push(text.into());
    }
    if hosts.is_empty() && report.errors.is_empty() {
        field.error(report, Code::FieldValue, "must name at least one host");
    }
    hosts
}

/// `ranges`: those may be among them, and are left out.
fn read_addresses(field: &Field<'_>, ranges: bool, report: &mut Report) -> Vec<(IpAddr, u32)> {
    let mut addresses: Vec<(IpAddr, u32)> = Vec::new();
    for item in field.list(report) {
        if ranges && is_range(&item) {
            continue;
        }
        let Some(address) = item.ip(report) else { continue };
        if addresses.iter().any(|(known, _)| *known == address) {
            item.error(report, Code::FieldValue, format!("{address} is there twice"));
        } else {
            addresses.push((address, item.line()));
        }
    }
    addresses
}

fn has_range(field: &Option<Field<'_>>, report: &mut Report) -> bool {
    field.as_ref().is_some_and(|field| field.list(report).iter().any(is_range))
}

fn is_range(field: &Field<'_>) -> bool {
    field.text(&mut Report::default()).is_some_and(|text| text.parse::<IpNet>().is_ok())
}

fn read_ports(field: &Field<'_>, report: &mut Report) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    let mut names = BTreeSet::new();
    for item in field.list(report) {
        let Some(mut fields) = item.fields(report) else { continue };
        let number = fields.need(report, "number").and_then(|f| f.port(report));
        let name = fields.need(report, "name").and_then(|f| f.text(report));
        let protocol = fields.take(report, "protocol").and_then(|f| read_protocol(&f, report));
        let target_port = fields.take(report, "targetPort").and_then(|f| f.port(report));
        fields.finish(report);
        let (Some(number), Some(name)) = (number, name) else { continue };
        if !names.insert(name) {
            item.error(report, Code::FieldValue, format!("port name {name:?} is there twice"));
        }
        if ports.iter().any(|known| known.number == number) {
            item.error(report, Code::FieldValue, format!("port {number} is there twice"));
            continue;
        }
        ports.push(ServicePort {
            number,
            name: name.into(),
            protocol: protocol.unwrap_or_else(|| "UNSPECIFIED".into()),
            target_port,
        });
    }
    if ports.is_empty() && report.errors.is_empty() {
        field.error(report, Code::FieldValue, "must name at least one port");
    }
    ports
}

fn read_protocol(field: &Field<'_>, report: &mut Report) -> Option<Arc<str>> {
    const KNOWN: [&str; 9] =
        ["HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "MYSQL", "TCP", "TLS"];
    let text = field.string(report)?.to_ascii_uppercase();
    if text.is_empty() {
        return None;
    }
    if text == "UDP" {
        field.error(report, Code::Unsupported, "only TCP is intercepted: leave UDP ports out");
        return None;
    }
    if !KNOWN.contains(&&*text) && text != "REDIS" {
        field.error(report, Code::FieldValue, format!("{text:?} is no protocol that Istio knows"));
        return None;
    }
    Some(text.into())
}

fn read_external(field: &Field<'_>, report: &mut Report) -> bool {
    match field.string(report) {
        Some("MESH_INTERNAL") => false,
        Some("MESH_EXTERNAL") | None => true,
        Some(other) => {
            field.error(
                report,
                Code::FieldValue,
                format!("{other:?} is not one of MESH_EXTERNAL, MESH_INTERNAL"),
            );
            true
        }
    }
}

fn read_selector(field: &Field<'_>, report: &mut Report) -> Option<BTreeMap<String, String>> {
    let mut fields = field.fields(report)?;
    let labels =
        fields.take(report, "labels").map(|f| f.selector_labels(report)).unwrap_or_default();
    if labels.is_empty() {
        field.error(report, Code::FieldValue, "labels must name at least one label");
    }
    fields.finish(report);
    Some(labels)
}

/// NONE is the default, as in Istio; where endpoints or a selector are given STATIC is, and DNS has
/// nothing to resolve: they are addresses.
fn read_resolution(
    fields: &mut Fields<'_>,
    has_endpoints: bool,
    report: &mut Report,
) -> Resolution {
    let Some(field) = fields.take(report, "resolution") else {
        return if has_endpoints { Resolution::Static } else { Resolution::None };
    };
    match field.string(report) {
        Some("STATIC") if !has_endpoints => {
            field.error(report, Code::FieldValue, "STATIC needs endpoints or workloadSelector");
        }
        Some("STATIC") | None => {}
        Some("DNS" | "DNS_ROUND_ROBIN") if has_endpoints => {}
        Some("DNS" | "DNS_ROUND_ROBIN") => return Resolution::Dns,
        Some("NONE") if has_endpoints => {
            let reason = "NONE connects to the address that the client asked for: no endpoints";
            field.error(report, Code::FieldValue, reason);
        }
        Some("NONE") => return Resolution::None,
        Some("DYNAMIC_DNS") => {
            let reason = "DYNAMIC_DNS is not supported: say DNS, with hosts without wildcards";
            field.error(report, Code::Unsupported, reason);
        }
        Some(other) => {
            field.error(report, Code::FieldValue, format!("{other:?} is no resolution"));
        }
    }
    Resolution::Static
}

fn check_resolution(
    resolution: Resolution,
    hosts: &[Arc<str>],
    nowhere: bool,
    report: &mut Report,
    line: u32,
) {
    match resolution {
        Resolution::Dns => {
            for host in hosts.iter().filter(|host| host.starts_with('*')) {
                let reason = format!("{host} is a wildcard, and DNS resolves names only");
                report.error(line, "spec.hosts", Code::FieldValue, reason);
            }
        }
        // Without addresses it would be every workload's port.
        Resolution::None if nowhere => {
            let reason = "NONE, the default, needs addresses in the mesh: say which servers are \
                          meant, or give endpoints, a workloadSelector or resolution DNS";
            report.error(line, "spec.addresses", Code::FieldMissing, reason);
        }
        Resolution::None | Resolution::Static => {}
    }
}
