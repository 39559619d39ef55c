//! The policies in force for one workload, and their verdict (policy.md 4.1).

use std::sync::Arc;

use super::ask::{Connection, Request};
use super::compile::Compiled;
use super::evaluate::Ask;
use super::model::Action;
use super::status::Difference;
use super::verdict::{Hit, Reason, Verdict};

/// The policies in force for one workload, ready to be asked.
#[derive(Debug, Default)]
pub struct WorkloadAuthorization {
    /// Refused, or of action CUSTOM: whatever comes is denied.
    closed: Vec<Arc<Compiled>>,
    deny: Vec<Arc<Compiled>>,
    allow: Vec<Arc<Compiled>>,
    audit: Vec<Arc<Compiled>>,
    dry_deny: Vec<Arc<Compiled>>,
    dry_allow: Vec<Arc<Compiled>>,
}

/// One policy in force, for those who list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InForce<'a> {
    /// `AuthorizationPolicy namespace/name`.
    pub object: &'a Arc<str>,
    pub action: Action,
    pub dry_run: bool,
    /// Why it was refused, if it was.
    pub refused: Option<&'a Arc<str>>,
    /// What is not enforced as written where HTTP is not seen.
    pub differences: &'a [Difference],
}

impl WorkloadAuthorization {
    pub(super) fn new(policies: impl Iterator<Item = Arc<Compiled>>) -> Self {
        let mut all = Self::default();
        for policy in policies {
            let list = match (policy.action, policy.dry_run) {
                (Action::Custom, _) => &mut all.closed,
                _ if policy.refused.is_some() => &mut all.closed,
                (Action::Audit, _) => &mut all.audit,
                (Action::Deny, false) => &mut all.deny,
                (Action::Allow, false) => &mut all.allow,
                (Action::Deny, true) => &mut all.dry_deny,
                (Action::Allow, true) => &mut all.dry_allow,
            };
            list.push(policy);
        }
        all
    }

    fn lists(&self) -> [&Vec<Arc<Compiled>>; 6] {
        [&self.closed, &self.deny, &self.allow, &self.audit, &self.dry_deny, &self.dry_allow]
    }

    /// No policy selects the workload: everything is allowed, nobody needs to ask.
    pub fn is_empty(&self) -> bool {
        self.lists().iter().all(|list| list.is_empty())
    }

    /// Every policy in force, those that decide before those that only note.
    pub fn policies(&self) -> impl Iterator<Item = InForce<'_>> {
        self.lists().into_iter().flatten().map(|policy| InForce {
            object: &policy.object,
            action: policy.action,
            dry_run: policy.dry_run,
            refused: policy.refused.as_ref(),
            differences: &policy.differences,
        })
    }

    /// Some rule that can apply to this port of the workload has a field that only HTTP has. If
    /// nothing can be allowed anyway, HTTP tells nothing new.
    pub fn needs_http(&self, port: u16) -> bool {
        self.closed.is_empty()
            && self
                .lists()
                .into_iter()
                .flatten()
                .any(|policy| policy.rules.iter().any(|rule| rule.asks_http(port)))
    }

    /// Whether a connection may be, as far as that can be told without HTTP (policy.md 4.8). Not for
    /// one whose requests are asked about: it denies more.
    pub fn connection(&self, connection: &Connection<'_>) -> Verdict {
        self.verdict(&Ask::new(connection, None))
    }

    /// Whether a request may be.
    pub fn request(&self, connection: &Connection<'_>, request: &Request<'_>) -> Verdict {
        self.verdict(&Ask::new(connection, Some(request)))
    }

    fn verdict(&self, ask: &Ask<'_>) -> Verdict {
        let (allowed, decided, reason) = self.decide(ask);
        let (policy, rule) = decided.unzip();
        Verdict {
            allowed,
            policy: policy.map(|policy| policy.object.clone()),
            rule: rule.flatten(),
            reason,
            audit: first(&self.audit, ask).map(|(policy, rule)| hit(policy, Some(rule), true)),
            dry_run: self.dry_run(ask),
        }
    }

    /// What cannot be enforced closes, then DENY, then ALLOW (policy.md 4.1).
    fn decide(&self, ask: &Ask<'_>) -> (bool, Option<(&Compiled, Option<u32>)>, Reason) {
        if let Some(policy) = self.closed.first() {
            let reason = if policy.refused.is_some() { Reason::Refused } else { Reason::Custom };
            return (false, Some((policy, None)), reason);
        }
        if let Some((policy, rule)) = first(&self.deny, ask) {
            return (false, Some((policy, Some(rule))), Reason::DenyRule);
        }
        let Some(oldest) = self.allow.first() else {
            return (true, None, Reason::NoAllowPolicy);
        };
        match first(&self.allow, ask) {
            Some((policy, rule)) => (true, Some((policy, Some(rule))), Reason::AllowRule),
            None => (false, Some((oldest, None)), Reason::NoRuleMatched),
        }
    }

    /// What the dry-run policies would have decided by themselves (policy.md 4.11).
    fn dry_run(&self, ask: &Ask<'_>) -> Option<Hit> {
        if let Some((policy, rule)) = first(&self.dry_deny, ask) {
            return Some(hit(policy, Some(rule), false));
        }
        let oldest = self.dry_allow.first()?;
        Some(match first(&self.dry_allow, ask) {
            Some((policy, rule)) => hit(policy, Some(rule), true),
            None => hit(oldest, None, false),
        })
    }
}

fn first<'p>(policies: &'p [Arc<Compiled>], ask: &Ask<'_>) -> Option<(&'p Compiled, u32)> {
    policies.iter().find_map(|policy| policy.matching(ask).map(|rule| (&**policy, rule)))
}

fn hit(policy: &Compiled, rule: Option<u32>, allowed: bool) -> Hit {
    Hit { policy: policy.object.clone(), rule, allowed }
}
