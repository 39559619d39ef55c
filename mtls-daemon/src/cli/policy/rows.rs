//! What rows have in common: objects as an API server holds them, a workload, mesh settings.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::cases::CaseFile;
use crate::identity::TrustDomain;
use crate::mesh::{MeshSettings, Objects, Snapshot};
use crate::policy::Mode;
use crate::policy::parse::Limits;

/// Kinds that rows carry because somebody else acts on them: nothing here does.
const OF_OTHERS: [&str; 6] =
    ["VirtualService", "Gateway", "Sidecar", "Service", "Pod", "ServiceAccount"];

/// Addresses of the workloads that a row speaks of without saying where they are: a range that is
/// reserved for tests of network devices.
pub(super) const CLIENT: &str = "198.18.0.1";
pub(super) const SERVER: &str = "198.18.0.2";
pub(super) const SERVICE: &str = "198.18.0.3";

/// The row's own objects and those of the whole file, as YAML: they go through the reader of files.
pub(super) fn yaml(file: &CaseFile, row: &Value) -> Result<String> {
    let mut yaml = String::new();
    let mut lists = vec![&file.top["objects"], &row["objects"], &row["policies"]];
    lists.retain(|list| !list.is_null());
    for list in lists {
        for object in list.as_array().context("objects are a list")? {
            if !object["kind"].as_str().is_some_and(|kind| OF_OTHERS.contains(&kind)) {
                write!(yaml, "{}", document(object))?;
            }
        }
    }
    Ok(yaml)
}

/// JSON is YAML.
pub(super) fn document(object: &Value) -> String {
    let mut object = object.clone();
    // Names of some unit tests have spaces, which no API server accepts; names only break ties here.
    if let Some(name) = object["metadata"]["name"].as_str() {
        let name = name.replace(' ', "-");
        object["metadata"]["name"] = name.into();
    }
    format!("---\n{object}\n")
}

/// An object of the networking group.
pub(super) fn object(kind: &str, name: &str, namespace: &str, spec: &Value) -> String {
    document(&json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }))
}

pub(super) fn settings(file: &CaseFile, row: &Value) -> Result<MeshSettings> {
    let trust_domain = file.text(row, "trust_domain").unwrap_or("cluster.local");
    let aliases = file.field(row, "trust_domain_aliases").and_then(Value::as_array);
    let domain = |text: &str| TrustDomain::configured(text).context("trust domain");
    Ok(MeshSettings {
        trust_domain: domain(trust_domain)?,
        trust_domain_aliases: aliases
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(domain)
            .collect::<Result<_>>()?,
        root_namespace: file.text(row, "root_namespace").unwrap_or("istio-system").into(),
        enable_auto_mtls: file
            .field(row, "enable_auto_mtls")
            .or_else(|| file.field(row, "auto_mtls"))
            .and_then(Value::as_bool)
            .unwrap_or(true),
        mesh_ranges: Vec::new(),
    })
}

pub(super) fn objects(yaml: &str) -> Objects {
    let mut objects = Objects::default();
    objects.add_file("row", yaml.as_bytes(), &Limits::default());
    objects
}

/// What a daemon would have in force that read these objects first: an object that it refuses is
/// closed, as it is there.
pub(super) fn snapshot(objects: Objects, settings: MeshSettings) -> Result<Snapshot> {
    match Snapshot::build(objects, None, settings, "", 0) {
        Ok(built) => Ok(built.snapshot),
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            bail!("{}", errors.join("; "))
        }
    }
}

pub(super) fn labels(value: &Value) -> Result<BTreeMap<String, String>> {
    match value {
        Value::Null => Ok(BTreeMap::new()),
        _ => serde_json::from_value(value.clone()).context("labels"),
    }
}

pub(super) fn port(value: &Value) -> Result<u16> {
    let number = value.as_u64().with_context(|| format!("{value} is not a port"))?;
    u16::try_from(number).with_context(|| format!("{number} is not a port"))
}

pub(super) fn text<'v>(value: &'v Value, field: &str) -> Result<&'v str> {
    value[field].as_str().with_context(|| format!("{field} is not there"))
}

pub(super) fn mode(text: &str) -> Result<Mode> {
    Ok(match text {
        "DISABLE" => Mode::Disable,
        "PERMISSIVE" => Mode::Permissive,
        "STRICT" => Mode::Strict,
        other => bail!("{other:?} is not one of DISABLE, PERMISSIVE, STRICT"),
    })
}
