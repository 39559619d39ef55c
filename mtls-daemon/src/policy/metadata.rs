//! `apiVersion`, `kind` and `metadata`: which object a document is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::error::{Code, Origin, Report};
use super::field::{Field, Fields};
use super::yaml::Node;

/// An object's name and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub labels: BTreeMap<String, String>,
    /// Whole seconds; None sorts first, so that objects without one compare by name.
    pub created: Option<SystemTime>,
    /// The annotation `istio.io/dry-run`, as it is written.
    pub dry_run: Option<Arc<str>>,
    pub origin: Origin,
}

impl ObjectMeta {
    /// Of a document whose name could not be read.
    pub fn unnamed(namespace: &str, origin: Origin) -> Self {
        Self {
            namespace: namespace.into(),
            name: "".into(),
            labels: BTreeMap::new(),
            created: None,
            dry_run: None,
            origin,
        }
    }

    /// Oldest first, then by name, then by namespace (policy.md 1.3).
    pub fn age_order(&self) -> (Option<SystemTime>, &str, &str) {
        (self.created, &self.name, &self.namespace)
    }
}

/// One document, opened as far as its `spec`.
#[derive(Debug)]
pub struct Document<'n> {
    /// API group, for example `networking.istio.io`.
    pub group: &'n str,
    pub version: &'n str,
    pub kind: &'n str,
    pub meta: ObjectMeta,
    spec: Option<Field<'n>>,
    /// A spec that is written and empty was reported when it was read.
    spec_reported: bool,
}

/// Kinds that close something: a field that is written and empty would leave it open, so it refuses
/// the object.
const STRICT: [&str; 6] = [
    "PeerAuthentication",
    "NodeWorkload",
    "DestinationRule",
    "AuthorizationPolicy",
    "Policy",
    "MeshPolicy",
];

impl<'n> Document<'n> {
    /// Reads the envelope. Sets `report.object` for the findings that follow.
    pub fn open(node: &'n Node, report: &mut Report) -> Option<Self> {
        report.object = "".into();
        let mut fields = Field::root(node).fields(report)?;
        let api = fields.need(report, "apiVersion").and_then(|f| f.text(report));
        let kind = fields.need(report, "kind").and_then(|f| f.text(report));
        let (api, kind) = (api?, kind?);
        report.object = kind.into();
        if kind.ends_with("List") && fields.has("items") {
            report.error(
                node.line,
                "kind",
                Code::ObjectKind,
                "the items of a list are a sequence of objects, and none of them is a list",
            );
            return None;
        }
        let mut metadata = fields.need(report, "metadata")?.fields(report)?;
        let meta = read_metadata(&mut metadata, kind, node.line, report);
        metadata.finish(report);
        let strict = STRICT.contains(&kind);
        if strict {
            fields = fields.strictly();
        }
        let spec = fields.take(report, "spec");
        let spec_reported = strict && fields.has("spec");
        fields.skip("status");
        fields.finish(report);
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        Some(Self { group, version, kind, meta: meta?, spec, spec_reported })
    }

    /// The fields of the `spec`, which every kind needs, be it `{}`.
    pub fn spec(&self, report: &mut Report) -> Option<Fields<'n>> {
        if self.spec.is_none() && !self.spec_reported {
            report.error(self.meta.origin.line, "spec", Code::FieldMissing, "is required");
        }
        self.spec.as_ref()?.fields(report)
    }
}

fn read_metadata(
    fields: &mut Fields<'_>,
    kind: &str,
    line: u32,
    report: &mut Report,
) -> Option<ObjectMeta> {
    let namespace = match fields.take(report, "namespace") {
        Some(field) => name_of(&field, report)?,
        None => "default".into(),
    };
    let name = name_of(&fields.need(report, "name")?, report)?;
    report.object = format!("{kind} {namespace}/{name}").into();
    let labels = fields.take(report, "labels").map(|f| f.labels(report)).unwrap_or_default();
    let created =
        fields.take(report, "creationTimestamp").and_then(|field| timestamp(&field, report));
    let dry_run = fields.take(report, "annotations").and_then(|f| dry_run(&f, kind, report));
    // Written by `kubectl get -o yaml`; nothing here depends on them.
    for known in [
        "uid",
        "resourceVersion",
        "generation",
        "managedFields",
        "selfLink",
        "ownerReferences",
        "finalizers",
        "generateName",
    ] {
        fields.skip(known);
    }
    let origin = Origin { file: report.file.clone(), line, object: report.object.clone() };
    Some(ObjectMeta { namespace, name, labels, created, dry_run, origin })
}

/// The one annotation that is read. On a kind that has no dry run it would be taken for one.
fn dry_run(annotations: &Field<'_>, kind: &str, report: &mut Report) -> Option<Arc<str>> {
    let entries = annotations.entries(report);
    let (_, field) = entries.into_iter().find(|(key, _)| *key == "istio.io/dry-run")?;
    if kind != "AuthorizationPolicy" {
        let reason = format!("{kind} has no dry run: it would be in force all the same");
        field.error(report, Code::FieldValue, reason);
        return None;
    }
    field.string(report).map(Into::into)
}

/// An object's name: what Kubernetes allows as one, and safe in a SPIFFE ID's path.
pub fn name_of(field: &Field<'_>, report: &mut Report) -> Option<Arc<str>> {
    let text = field.text(report)?;
    let fine = text.len() <= 253
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    if !fine {
        field.error(
            report,
            Code::FieldValue,
            format!("{text:?} is not a name: lower-case letters, digits, '-' and '.', at most 253"),
        );
        return None;
    }
    Some(text.into())
}

fn timestamp(field: &Field<'_>, report: &mut Report) -> Option<SystemTime> {
    let text = field.text(report)?;
    match humantime::parse_rfc3339(text) {
        // Kubernetes keeps whole seconds; comparing more would order objects differently there.
        Ok(time) => {
            let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        }
        Err(error) => {
            field.error(
                report,
                Code::FieldValue,
                format!("{text:?} is not an RFC 3339 time: {error}"),
            );
            None
        }
    }
}
