//! Reading an object, so far its envelope: an object with rules is refused.

use super::model::{Action, AuthorizationPolicy};
use crate::policy::error::{Code, Report};
use crate::policy::metadata::Document;

impl AuthorizationPolicy {
    /// Reads and validates (policy.md 4.3). None: refused, and the report says why.
    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let fields = document.spec(report)?;
        if fields.has("rules") {
            let line = document.meta.origin.line;
            report.error(line, "spec.rules", Code::Unsupported, "rules are not read yet");
            return None;
        }
        fields.finish(report);
        Some(Self {
            meta: document.meta.clone(),
            action: Action::Allow,
            dry_run: false,
            selector: Default::default(),
            targets_gateway: false,
            rules: Vec::new(),
        })
    }
}
