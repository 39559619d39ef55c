//! `mtls-daemon policy client-tls`, by what the row asks: the rule for a host (`proxy_namespace`),
//! the settings for a service before an endpoint is known (`service_mtls_mode`), mTLS or plaintext to an endpoint (`endpoint`), the mode of a service as a whole (`service`).

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::rows;
use crate::cli::Failed;
use crate::cli::cases::{self, Answer, CaseFile, CasesArgs, Table};
use crate::mesh::{ClientTls, OutboundPlan};
use crate::policy::field::Field;
use crate::policy::metadata::Document;
use crate::policy::parse::{self, Limits};
use crate::policy::upstream::{IdentityFiles, Upstream};
use crate::policy::{
    DestinationRule, DestinationRules, PeerAuthentications, Report, TlsSettings, auto,
};

pub(super) fn run(args: &CasesArgs) -> Result<(), Failed> {
    // null is an answer as well: no rule, no settings.
    let expected =
        |row: &Value| row.get("expected_subsets").or_else(|| row.get("expected")).cloned();
    cases::run(args, &Table { expected, ..Table::default() }, |_, file, row| {
        if row.get("proxy_namespace").is_some() {
            look_up(file, row)
        } else if row.get("service_mtls_mode").is_some() {
            settings(file, row)
        } else if row.get("endpoint").is_some() {
            endpoint(file, row)
        } else if row.get("service").is_some() {
            service(file, row)
        } else {
            bail!(
                "the row asks nothing: proxy_namespace, service_mtls_mode, endpoint or \
                 service is missing"
            )
        }
    })
}

/// Which rule a client uses for a host, by its subsets. Rules are taken as an API server may hold
/// them: what is wrong elsewhere in one does not hide it.
fn look_up(file: &CaseFile, row: &Value) -> Result<Answer> {
    let yaml = rows::yaml(file, row)?;
    let mut report = Report::new("row");
    let mut rules = Vec::new();
    let nodes = parse::documents(yaml.as_bytes(), &Limits::default(), &mut report);
    for node in nodes.unwrap_or_default() {
        let Some(document) = Document::open(&node, &mut report) else { continue };
        if document.kind == "DestinationRule" {
            rules.extend(DestinationRule::read(&document, &mut report));
        }
    }
    let root = file.text(row, "root_namespace").unwrap_or("istio-system");
    let rules = DestinationRules::new(root, rules);
    let client = rows::text(row, "proxy_namespace")?;
    let host = rows::text(row, "host")?;
    let namespace = row["service_namespace"].as_str().unwrap_or(client);
    let labels = rows::labels(&row["proxy_labels"])?;
    let found = rules.find(client, namespace, &[host]);
    let rule = found.as_ref().and_then(|found| found.for_client(&labels));
    let subsets = rule.map(|rule| rule.subsets.iter().map(|s| &*s.name).collect::<Vec<_>>());
    let mut answer = Answer::from(json!(subsets));
    answer.more.insert("rule".into(), json!(rule.map(|rule| &*rule.because)));
    if let Some(error) = report.errors.first() {
        answer.more.insert("warning".into(), json!(error.to_string()));
    }
    Ok(answer)
}

/// What a client of the mesh sends to one endpoint of a service.
fn endpoint(file: &CaseFile, row: &Value) -> Result<Answer> {
    let (service, endpoint) = (&row["service"], &row["endpoint"]);
    let namespace = rows::text(endpoint, "namespace")?;
    let port = rows::port(&service["port"])?;
    let mut labels = endpoint["labels"].as_object().cloned().unwrap_or_default();
    labels.insert("the-endpoint-of-the-row".into(), "yes".into());
    if let Some(mode) = endpoint["tls_mode_label"].as_str() {
        labels.insert("security.istio.io/tlsMode".into(), mode.into());
    }
    let target = match &endpoint["port"] {
        Value::Null => port,
        target => rows::port(target)?,
    };
    let external = service["mesh_external"] == true;
    let yaml = [
        rows::yaml(file, row)?,
        rows::object(
            "WorkloadEntry",
            "the-client-of-the-row",
            rows::text(&row["client"], "namespace")?,
            &json!({
                "address": rows::CLIENT,
                "serviceAccount": "client",
                "labels": row["client"]["labels"].as_object().cloned().unwrap_or_default(),
            }),
        ),
        rows::object(
            "WorkloadEntry",
            "the-endpoint-of-the-row",
            namespace,
            &json!({"address": rows::SERVER, "serviceAccount": "server", "labels": labels}),
        ),
        rows::object(
            "ServiceEntry",
            "the-service-of-the-row",
            service["namespace"].as_str().unwrap_or(namespace),
            &json!({
                "hosts": [rows::text(service, "host")?],
                "addresses": [rows::SERVICE],
                "location": if external { "MESH_EXTERNAL" } else { "MESH_INTERNAL" },
                "resolution": "STATIC",
                "ports": [{"number": port, "name": "tcp", "targetPort": target}],
                "workloadSelector": {"labels": {"the-endpoint-of-the-row": "yes"}},
            }),
        ),
    ]
    .concat();
    let mut objects = rows::objects(&yaml);
    objects.subset = service["subset"].as_str().map(Into::into);
    let snapshot = rows::snapshot(objects, rows::settings(file, row)?)?;
    let client = snapshot.workload_at(rows::CLIENT.parse()?).context("the client")?;
    let destination = format!("{}:{port}", rows::SERVICE).parse()?;
    let (result, because) = match snapshot.outbound(client, destination, &mut |_| 0) {
        OutboundPlan::Connect { tls: ClientTls::Plaintext { because }, .. } => {
            ("plaintext", because)
        }
        OutboundPlan::Connect { tls: ClientTls::IstioMutual { because, .. }, .. } => {
            ("mtls", because)
        }
        OutboundPlan::Connect { tls: ClientTls::Originate { because, .. }, .. } => ("tls", because),
        OutboundPlan::Connect { tls: ClientTls::Refused { because }, .. } => ("refused", because),
        other => bail!("the service has no endpoint: {other:?}"),
    };
    let mut answer = Answer::from(json!(result));
    answer.more.insert("because".into(), json!(because));
    Ok(answer)
}

/// DestinationRule and auto mTLS, put together as far as that goes without an endpoint.
fn settings(file: &CaseFile, row: &Value) -> Result<Answer> {
    let rule = match &row["destination_rule_tls"] {
        Value::Null => None,
        tls => {
            let mut report = Report::new("row");
            let nodes =
                parse::documents(tls.to_string().as_bytes(), &Limits::default(), &mut report);
            let node = nodes.unwrap_or_default().pop().context("destination_rule_tls")?;
            let rule = TlsSettings::read(&Field::root(&node), &mut report);
            if let Some(error) = report.errors.first() {
                bail!("destination_rule_tls: {error}");
            }
            rule
        }
    };
    let files = &row["proxy_cert_files"];
    let path = |name: &str| rows::text(files, name).map(Arc::from);
    let identity_files = if files.is_null() {
        None
    } else {
        Some(IdentityFiles {
            certificate: path("TLSClientCertChain")?,
            key: path("TLSClientKey")?,
            ca: path("TLSClientRootCert")?,
        })
    };
    let mode = rows::text(row, "service_mtls_mode")?;
    let upstream = Upstream {
        names: row["service_sans"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str().map(Arc::from))
            .collect(),
        sni: row["default_sni"].as_str().map(Arc::from),
        auto_mtls: file.field(row, "auto_mtls").is_none_or(|on| *on == true),
        external: row["mesh_external"] == true,
        mode: if mode == "UNKNOWN" { None } else { Some(rows::mode(mode)?) },
        identity_files,
    };
    let settings = upstream.settings(rule.as_ref());
    Ok(Answer::from(settings.as_ref().map_or(Value::Null, json_of)))
}

/// As a DestinationRule would say it: what is not set is left out.
fn json_of(settings: &TlsSettings) -> Value {
    let mut fields = serde_json::Map::new();
    fields.insert("mode".into(), json!(settings.mode.as_str()));
    for (name, value) in [
        ("clientCertificate", &settings.client_certificate),
        ("privateKey", &settings.private_key),
        ("caCertificates", &settings.ca_certificates),
        ("caCrl", &settings.ca_crl),
        ("credentialName", &settings.credential_name),
        ("sni", &settings.sni),
    ] {
        if let Some(value) = value {
            fields.insert(name.into(), json!(value));
        }
    }
    if !settings.subject_alt_names.is_empty() {
        fields.insert("subjectAltNames".into(), json!(settings.subject_alt_names));
    }
    if settings.insecure_skip_verify {
        fields.insert("insecureSkipVerify".into(), json!(true));
    }
    Value::Object(fields)
}

/// The mode that clients infer for a service as a whole.
fn service(file: &CaseFile, row: &Value) -> Result<Answer> {
    let service = &row["service"];
    let root = file.text(row, "root_namespace").unwrap_or("istio-system");
    let objects = rows::objects(&rows::yaml(file, row)?);
    let all = PeerAuthentications::new(root, objects.peer_authentications());
    let instances: Option<Vec<bool>> = (service["resolution"] == "headless").then(|| {
        let instances = service["instances"].as_array().into_iter().flatten();
        instances.map(|instance| instance["tls_mode_label"] == "istio").collect()
    });
    let mode = auto::service_mode(
        &all,
        rows::text(service, "namespace")?,
        service["mesh_external"] == true,
        instances.as_deref(),
    );
    let name = mode.as_ref().map_or_else(|| "UNKNOWN".to_owned(), |mode| mode.mode.to_string());
    let mut answer = Answer::from(json!(name));
    answer.more.insert("because".into(), json!(mode.map(|mode| mode.because)));
    Ok(answer)
}
