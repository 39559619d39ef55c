//! `DestinationRule`: how a client speaks TLS to a service (policy.md 2). Only its TLS parts are
//! used; the others are reported as not used, and unknown ones refused: misspelt, TLS settings would
//! silently be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::{Code, Report};
use super::export::ExportTo;
use super::field::{Field, Fields};
use super::host;
use super::metadata::{Document, ObjectMeta};

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRule {
    pub meta: ObjectMeta,
    /// Fully qualified, or a wildcard.
    pub host: Arc<str>,
    pub export_to: ExportTo,
    /// Labels of the clients that it is for; empty: every client.
    pub workload_selector: BTreeMap<String, String>,
    /// None: no `trafficPolicy` at all, which matters when rules are merged (policy.md 2.1.6).
    pub traffic: Option<TrafficPolicy>,
    pub subsets: Vec<Subset>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrafficPolicy {
    pub tls: Option<Arc<TlsSettings>>,
    /// By service port. An entry without TLS settings means none, not inheritance (policy.md 2.2).
    pub ports: BTreeMap<u16, Option<Arc<TlsSettings>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    pub name: Arc<str>,
    pub labels: BTreeMap<String, String>,
    pub traffic: Option<TrafficPolicy>,
}

/// The modes that are supported. SIMPLE and MUTUAL are refused when read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    IstioMutual,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    pub mode: TlsMode,
    pub sni: Option<Arc<str>>,
    /// Replace the identities that secure naming expects (policy.md 2.5). Empty: not set.
    pub subject_alt_names: Vec<Arc<str>>,
}

impl DestinationRule {
    /// Reads and validates (policy.md 2.1.5, 2.3).
    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let meta = document.meta.clone();
        let mut fields = document.spec(report)?;
        let host = fields.need(report, "host").and_then(|field| read_host(&field, &meta, report));
        let workload_selector = fields
            .take(report, "workloadSelector")
            .and_then(|field| read_workload_selector(&field, report))
            .unwrap_or_default();
        let export_field = fields.take(report, "exportTo");
        let mut export_to = ExportTo::read(export_field.clone(), &meta.namespace, report);
        if !workload_selector.is_empty() {
            // Private to its namespace (policy.md 2.1.5).
            if let (Some(field), false) = (&export_field, export_to == ExportTo::Own) {
                field.error(
                    report,
                    Code::FieldValue,
                    "a rule with workloadSelector is private to its namespace: only \".\" is allowed",
                );
            }
            export_to = ExportTo::Own;
        }
        let traffic =
            fields.take(report, "trafficPolicy").and_then(|f| read_traffic(&f, true, report));
        let subsets = fields
            .take(report, "subsets")
            .map(|field| read_subsets(&field, report))
            .unwrap_or_default();
        fields.finish(report);
        Some(Self { meta, host: host?, export_to, workload_selector, traffic, subsets })
    }
}

fn read_host(field: &Field<'_>, meta: &ObjectMeta, report: &mut Report) -> Option<Arc<str>> {
    let text = field.text(report)?;
    if !host::is_valid(text) {
        field.error(report, Code::FieldValue, format!("{text:?} is no host name or wildcard"));
        return None;
    }
    // DNS names have no case.
    Some(host::resolve_short_name(&text.to_ascii_lowercase(), &meta.namespace))
}

fn read_workload_selector(
    field: &Field<'_>,
    report: &mut Report,
) -> Option<BTreeMap<String, String>> {
    let mut fields = field.fields(report)?;
    let labels =
        fields.take(report, "matchLabels").map(|f| f.selector_labels(report)).unwrap_or_default();
    if labels.is_empty() {
        field.warn(report, Code::WarnSuspicious, "selects by no label, so it is as if absent");
    }
    fields.finish(report);
    Some(labels)
}

fn read_subsets(field: &Field<'_>, report: &mut Report) -> Vec<Subset> {
    let mut subsets: Vec<Subset> = Vec::new();
    let mut names = BTreeSet::new();
    for item in field.list(report) {
        let Some(mut fields) = item.fields(report) else { continue };
        let name = fields.need(report, "name").and_then(|f| f.text(report));
        let labels = fields.take(report, "labels").map(|f| f.labels(report)).unwrap_or_default();
        let traffic_field = fields.take(report, "trafficPolicy");
        let traffic = traffic_field.as_ref().and_then(|f| read_traffic(f, true, report));
        if let (Some(field), Some(policy)) = (&traffic_field, &traffic)
            && (policy.tls.is_some() || !policy.ports.is_empty())
        {
            field.warn(
                report,
                Code::WarnIgnored,
                "no route selects subsets here: the rule's own trafficPolicy is used",
            );
        }
        fields.finish(report);
        let Some(name) = name else { continue };
        if !names.insert(name) {
            item.error(report, Code::FieldValue, format!("subset {name:?} is there twice"));
            continue;
        }
        subsets.push(Subset { name: name.into(), labels, traffic });
    }
    subsets
}

/// What else Istio has in a traffic policy: it opens nothing.
const NOT_TLS: [&str; 6] = [
    "loadBalancer",
    "connectionPool",
    "outlierDetection",
    "tunnel",
    "proxyProtocol",
    "retryBudget",
];

fn read_traffic(field: &Field<'_>, with_ports: bool, report: &mut Report) -> Option<TrafficPolicy> {
    let mut fields = field.fields(report)?;
    let tls = fields.take(report, "tls").and_then(|f| read_tls(&f, report)).map(Arc::new);
    let mut ports = BTreeMap::new();
    if with_ports && let Some(list) = fields.take(report, "portLevelSettings") {
        for item in list.list(report) {
            let Some(mut entry) = item.fields(report) else { continue };
            let port = entry.need(report, "port").and_then(|f| read_port_selector(&f, report));
            let tls = entry.take(report, "tls").and_then(|f| read_tls(&f, report)).map(Arc::new);
            entry.ignore(report, &NOT_TLS);
            entry.finish(report);
            if let Some(port) = port
                && ports.insert(port, tls).is_some()
            {
                item.error(report, Code::FieldValue, format!("port {port} is there twice"));
            }
        }
    }
    fields.ignore(report, &NOT_TLS);
    fields.finish(report);
    Some(TrafficPolicy { tls, ports })
}

fn read_port_selector(field: &Field<'_>, report: &mut Report) -> Option<u16> {
    let mut fields = field.fields(report)?;
    let port = fields.need(report, "number").and_then(|f| f.port(report));
    fields.finish(report);
    port
}

fn read_tls(field: &Field<'_>, report: &mut Report) -> Option<TlsSettings> {
    let mut fields = field.fields(report)?;
    // Istio reads a missing mode as DISABLE: plaintext by omission is refused here.
    let mode_field = fields.take(report, "mode");
    let Some(mode_field) = mode_field else {
        if fields.has("mode") {
            return None;
        }
        field.error(
            report,
            Code::FieldMissing,
            "mode is required: DISABLE for plaintext, ISTIO_MUTUAL for mesh mTLS",
        );
        return None;
    };
    let mode = match mode_field.string(report)? {
        "DISABLE" => TlsMode::Disable,
        "ISTIO_MUTUAL" => TlsMode::IstioMutual,
        unsupported @ ("SIMPLE" | "MUTUAL") => {
            mode_field.error(
                report,
                Code::Unsupported,
                format!("{unsupported} is not supported yet, and is refused so that nothing is sent in plaintext instead"),
            );
            return None;
        }
        other => {
            mode_field.error(
                report,
                Code::FieldValue,
                format!("{other:?} is not one of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL"),
            );
            return None;
        }
    };
    let settings = TlsSettings {
        mode,
        sni: fields.take(report, "sni").and_then(|f| read_sni(&f, report)),
        subject_alt_names: fields
            .take(report, "subjectAltNames")
            .map(|f| f.texts(report).into_iter().map(|(_, text)| text.into()).collect())
            .unwrap_or_default(),
    };
    if mode == TlsMode::IstioMutual {
        refuse_certificate_fields(&mut fields, report);
    }
    fields.ignore(report, &CERTIFICATES);
    fields.ignore(report, &["insecureSkipVerify"]);
    fields.finish(report);
    Some(settings)
}

fn read_sni(field: &Field<'_>, report: &mut Report) -> Option<Arc<str>> {
    let text = field.string(report)?;
    if text.is_empty() {
        return None;
    }
    if !host::is_dns_name(text) {
        field.error(report, Code::FieldValue, format!("{text:?} is not a DNS name"));
        return None;
    }
    Some(text.into())
}

const CERTIFICATES: [&str; 5] =
    ["clientCertificate", "privateKey", "caCertificates", "credentialName", "caCrl"];

/// ISTIO_MUTUAL uses the mesh's certificates: naming others contradicts it (policy.md 2.3).
fn refuse_certificate_fields(fields: &mut Fields<'_>, report: &mut Report) {
    for name in CERTIFICATES {
        if let Some(field) = fields.take(report, name)
            && field.string(report).is_some_and(|text| !text.is_empty())
        {
            field.error(report, Code::FieldValue, "must be empty with ISTIO_MUTUAL");
        }
    }
    if let Some(field) = fields.take(report, "insecureSkipVerify")
        && field.boolean(report) == Some(true)
    {
        field.error(report, Code::FieldValue, "cannot be used with ISTIO_MUTUAL");
    }
}
