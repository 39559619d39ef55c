//! How a workload of an identity is described to an agent that gives by description.

use std::fmt;

use crate::grpc::spire_delegated::Selector;
use crate::identity::SpiffeId;

/// What Kubernetes workloads are registered by.
pub const DEFAULT: [&str; 2] = ["k8s:ns:{namespace}", "k8s:sa:{service-account}"];

const NAMESPACE: &str = "{namespace}";
const ACCOUNT: &str = "{service-account}";
const PATH: &str = "{path}";

/// Templates, `TYPE:VALUE`, in which an identity's parts are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selectors(Vec<(String, String)>);

impl Selectors {
    /// # Errors
    /// One has no type, or what is in braces is nothing.
    pub fn parse<'t>(templates: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        let one = |template: &'t str| {
            let parts = template.split_once(':').filter(|(kind, value)| {
                !kind.is_empty() && !value.is_empty() && !kind.contains(['{', '}'])
            });
            let (kind, value) =
                parts.ok_or_else(|| format!("{template:?} is no selector: TYPE:VALUE"))?;
            let rest = value.replace(NAMESPACE, "").replace(ACCOUNT, "").replace(PATH, "");
            if rest.contains(['{', '}']) {
                return Err(format!(
                    "{template:?}: in braces stand namespace, service-account or path"
                ));
            }
            Ok((kind.to_owned(), value.to_owned()))
        };
        Ok(Self(templates.into_iter().map(one).collect::<Result<_, _>>()?))
    }

    /// # Errors
    /// The identity has no such part.
    pub(super) fn of(&self, id: &SpiffeId) -> Result<Vec<Selector>, String> {
        let istio = id.istio_parts();
        let filled = |(kind, value): &(String, String)| {
            let mut value = value.replace(PATH, id.path());
            if value.contains(NAMESPACE) || value.contains(ACCOUNT) {
                let (namespace, account) = istio.ok_or_else(|| {
                    format!("{id} has no namespace and service account to describe it by")
                })?;
                value = value.replace(NAMESPACE, namespace).replace(ACCOUNT, account);
            }
            Ok(Selector { r#type: kind.clone(), value })
        };
        self.0.iter().map(filled).collect()
    }
}

impl fmt::Display for Selectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> =
            self.0.iter().map(|(kind, value)| format!("{kind}:{value}")).collect();
        f.write_str(&all.join(", "))
    }
}
