//! What becomes of an object that was refused: nobody knows what it wanted to forbid, so what it
//! selects is denied.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::policy::error::Report;
use crate::policy::metadata::Document;
use crate::policy::{ObjectMeta, authz::model::is_true};

/// An object that was refused: what it selects is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPolicy {
    pub meta: ObjectMeta,
    /// None: not even that could be read, so everything in its scope is denied.
    pub selector: Option<BTreeMap<String, String>>,
    pub reason: Arc<str>,
}

impl RefusedPolicy {
    /// Of a document that [`super::AuthorizationPolicy::read`] refused. None: it would have denied
    /// nothing, had it been right: dry runs, AUDIT, and what is for gateways.
    pub fn of(document: &Document<'_>, reason: impl Into<Arc<str>>) -> Option<Self> {
        let meta = document.meta.clone();
        let refused = |selector| Self { meta: meta.clone(), selector, reason: reason.into() };
        // What is wrong was reported when the object was read.
        let mut unheard = Report::default();
        let Some(mut fields) = document.spec(&mut unheard) else { return Some(refused(None)) };
        let action = fields.take(&mut unheard, "action").and_then(|f| f.string(&mut unheard));
        let dry_run = meta.dry_run.as_deref().and_then(is_true) == Some(true);
        // For a typing error beside it, a gateway's policy has a selector or an unknown field.
        let one = fields
            .take(&mut unheard, "targetRef")
            .and_then(|f| f.fields(&mut unheard))
            .is_some_and(|fields| !fields.is_empty());
        let list = fields.take(&mut unheard, "targetRefs").map(|f| f.list(&mut unheard));
        let gateway = (one || list.is_some_and(|refs| !refs.is_empty())) && !fields.has("selector");
        // Only ALLOW and DENY can be tried: of anything else nobody knows that it would be.
        let dry_run = dry_run && matches!(action, None | Some("ALLOW" | "DENY"));
        if action == Some("AUDIT") || dry_run || gateway {
            return None;
        }
        let Some(selector) = fields.take(&mut unheard, "selector") else {
            return Some(refused(None));
        };
        let labels = selector.fields(&mut unheard).and_then(|mut fields| {
            let labels = fields.take(&mut unheard, "matchLabels")?.selector_labels(&mut unheard);
            fields.finish(&mut unheard);
            Some(labels)
        });
        let sound = unheard.errors.is_empty() && unheard.warnings.is_empty();
        Some(refused(labels.filter(|_| sound)))
    }
}
