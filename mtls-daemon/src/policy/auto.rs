//! Auto mTLS: what a client infers about a service where no rule sets TLS (policy.md 2.4).

use super::effective::PeerAuthentications;
use super::{EffectiveMode, Mode};

/// The mode of a service as a whole. Workload objects take no part (policy.md 2.4.2). None: the
/// service is outside the mesh, and nothing is inferred.
///
/// `instances` are those of a headless service, by whether they speak mTLS: inferred as a whole,
/// such a service is mTLS only if every one does, and at least one is known (policy.md 2.4.5). The
/// data path gives None, because it knows which endpoint each connection goes to.
pub fn service_mode(
    authentications: &PeerAuthentications,
    namespace: &str,
    external: bool,
    instances: Option<&[bool]>,
) -> Option<EffectiveMode> {
    if external {
        return None;
    }
    if instances.is_some_and(|all| all.is_empty() || all.contains(&false)) {
        let because = "headless, and not every instance speaks mTLS".into();
        return Some(EffectiveMode { mode: Mode::Disable, because });
    }
    Some(authentications.namespace_mode(namespace))
}

/// Whether auto mTLS applies to a service at all; its endpoints are asked next (policy.md 2.4.1).
pub fn applies(enabled: bool, service: Option<Mode>) -> bool {
    enabled && service.is_some_and(|mode| mode != Mode::Disable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_2_4_1_and_2_4_5_services_as_a_whole() {
        let all = PeerAuthentications::new("root", Vec::new());
        let mode = |external, instances| {
            service_mode(&all, "foo", external, instances).map(|effective| effective.mode)
        };
        assert_eq!(mode(false, None), Some(Mode::Permissive));
        assert_eq!(mode(true, None), None);
        assert_eq!(mode(true, Some(&[true])), None);
        assert_eq!(mode(false, Some(&[])), Some(Mode::Disable));
        assert_eq!(mode(false, Some(&[true, false])), Some(Mode::Disable));
        assert_eq!(mode(false, Some(&[true, true])), Some(Mode::Permissive));
        assert!(applies(true, Some(Mode::Strict)));
        assert!(!applies(true, Some(Mode::Disable)) && !applies(true, None));
        assert!(!applies(false, Some(Mode::Strict)));
    }
}
