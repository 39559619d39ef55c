//! `DestinationRule`: how a client speaks TLS to a service (policy.md 2). Only its TLS parts are
//! used ([`TlsSettings`]); the others are reported as not used, and unknown ones refused: misspelt,
//! TLS settings would silently be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::client_tls::TlsSettings;
use super::error::{Code, Report};
use super::export::ExportTo;
use super::field::{Field, Fields};
use super::metadata::{Document, ObjectMeta};
use super::{host, traffic};

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
    /// It was refused: clients that it is for do not reach its host.
    pub refused: Option<Untold>,
}

/// What could not be read of a rule that was refused: it is closed for whatever that could have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untold {
    /// Any host may have been meant, also one that other rules are for.
    pub host: bool,
    /// Any client: those that rules select, and those of its own namespace alone.
    pub clients: bool,
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

impl DestinationRule {
    /// What it says of TLS, at whatever level.
    pub fn tls(&self) -> impl Iterator<Item = &Arc<TlsSettings>> {
        let subsets = self.subsets.iter().filter_map(|subset| subset.traffic.as_ref());
        let all = self.traffic.iter().chain(subsets);
        all.flat_map(|traffic| traffic.tls.iter().chain(traffic.ports.values().flatten()))
    }

    /// Reads and validates (policy.md 2.1.5, 2.3).
    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let meta = document.meta.clone();
        let mut fields = document.spec(report)?;
        let host = fields.need(report, "host").and_then(|field| read_host(&field, &meta, report));
        let selector = fields.take(report, "workloadSelector");
        // Also one without labels, which selects every client there.
        let private = selector.is_some();
        let workload_selector =
            selector.and_then(|field| read_workload_selector(&field, report)).unwrap_or_default();
        let export_field = fields.take(report, "exportTo");
        let mut export_to = ExportTo::read(export_field.clone(), &meta.namespace, report);
        if private {
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
        let traffic = fields.take(report, "trafficPolicy").and_then(|f| read_traffic(&f, report));
        let subsets = fields
            .take(report, "subsets")
            .map(|field| read_subsets(&field, report))
            .unwrap_or_default();
        fields.finish(report);
        Some(Self {
            meta,
            host: host?,
            export_to,
            workload_selector,
            traffic,
            subsets,
            refused: None,
        })
    }

    /// Closes every host to the clients and services of its namespace.
    pub fn closed(meta: ObjectMeta) -> Self {
        Self {
            meta,
            host: "*".into(),
            export_to: ExportTo::All,
            workload_selector: BTreeMap::new(),
            traffic: None,
            subsets: Vec::new(),
            refused: Some(Untold { host: true, clients: true }),
        }
    }

    /// What stands in for a document that was refused: its host is closed, to whom it was for; every
    /// host where that cannot be read.
    pub fn refused(document: &Document<'_>) -> Self {
        // What is wrong was reported when the object was read.
        let mut unheard = Report::default();
        let mut object = Self::closed(document.meta.clone());
        let mut untold = Untold { host: true, clients: true };
        let Some(mut fields) = document.spec(&mut unheard) else { return object };
        let host = fields.take(&mut unheard, "host");
        let mut of_host = Report::default();
        if let Some(host) = host.and_then(|f| read_host(&f, &object.meta, &mut of_host)) {
            object.host = host;
            untold.host = false;
        }
        let selector = fields.take(&mut unheard, "workloadSelector");
        let private = selector.is_some();
        let labels = selector.and_then(|f| read_workload_selector(&f, &mut unheard));
        let export_field = fields.take(&mut unheard, "exportTo");
        let export_to = ExportTo::read(export_field, &object.meta.namespace, &mut unheard);
        if unheard.errors.is_empty() && unheard.warnings.is_empty() {
            object.workload_selector = labels.unwrap_or_default();
            object.export_to = if private { ExportTo::Own } else { export_to };
            untold.clients = false;
        }
        object.refused = Some(untold);
        object
    }

    /// The same for an object that is right by itself.
    pub fn into_refused(self) -> Self {
        let refused = Some(Untold { host: false, clients: false });
        Self { traffic: None, subsets: Vec::new(), refused, ..self }
    }

    /// Which clients it is for is not known.
    pub(super) fn is_for_anyone(&self) -> bool {
        self.refused.is_some_and(|untold| untold.clients)
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
        field.warn(
            report,
            Code::WarnSuspicious,
            "selects by no label, so every client of its namespace",
        );
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
        let traffic = traffic_field.as_ref().and_then(|f| read_traffic(f, report));
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

fn read_traffic(field: &Field<'_>, report: &mut Report) -> Option<TrafficPolicy> {
    let mut fields = field.fields(report)?;
    if fields.is_empty() {
        field.error(report, Code::FieldValue, "must set something, or be left out");
    }
    let tls = read_settings(&mut fields, report);
    let mut ports = BTreeMap::new();
    if let Some(list) = fields.take(report, "portLevelSettings") {
        for item in list.list(report) {
            let Some(mut entry) = item.fields(report) else { continue };
            let port = entry.need(report, "port").and_then(|f| read_port_selector(&f, report));
            let tls = read_settings(&mut entry, report);
            traffic::read_over(&mut entry, report);
            entry.finish(report);
            if let Some(port) = port
                && ports.insert(port, tls).is_some()
            {
                item.error(report, Code::FieldValue, format!("port {port} is there twice"));
            }
        }
    }
    traffic::read_over(&mut fields, report);
    fields.finish(report);
    Some(TrafficPolicy { tls, ports })
}

fn read_settings(fields: &mut Fields<'_>, report: &mut Report) -> Option<Arc<TlsSettings>> {
    let field = fields.take(report, "tls")?;
    TlsSettings::read(&field, report).map(Arc::new)
}

fn read_port_selector(field: &Field<'_>, report: &mut Report) -> Option<u16> {
    let mut fields = field.fields(report)?;
    let port = fields.need(report, "number").and_then(|f| f.port(report));
    fields.finish(report);
    port
}
