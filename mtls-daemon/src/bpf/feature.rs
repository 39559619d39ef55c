//! What the kernel side uses where it is there and can do without, found by probing.

use std::fmt;
use std::str::FromStr;

use super::{BpfError, object};

/// Something that a newer kernel has and an older one is worked without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `sk_lookup` programs know the interface that a SYN came in by (Linux 5.17). Without it the
    /// daemon's connections to applications come from loopback addresses, and getpeername shows the
    /// client.
    IngressIfindex,
    /// connect programs can ask for the current task's cgroup (Linux 5.7). Without it nobody can be a
    /// workload in the host's own network namespace.
    CgroupId,
}

impl Feature {
    const ALL: [Self; 2] = [Self::IngressIfindex, Self::CgroupId];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::IngressIfindex => "ingress_ifindex",
            Self::CgroupId => "cgroup_id",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|feature| feature.as_str() == text).ok_or_else(|| {
            format!("no such feature; there are: {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

/// Which of them the programs are loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    pub ingress_ifindex: bool,
    pub cgroup_id: bool,
}

impl Features {
    /// All but these, before the kernel was asked.
    pub fn all_but(without: &[Feature]) -> Self {
        Self {
            ingress_ifindex: !without.contains(&Feature::IngressIfindex),
            cgroup_id: !without.contains(&Feature::CgroupId),
        }
    }

    /// What is done without.
    pub fn missing(self) -> Vec<Feature> {
        let has = |feature: &Feature| match feature {
            Feature::IngressIfindex => self.ingress_ifindex,
            Feature::CgroupId => self.cgroup_id,
        };
        Feature::ALL.into_iter().filter(|feature| !has(feature)).collect()
    }

    /// Without what the verifier has refused, if it can be done without and was not yet.
    pub(super) fn without_refused(self, error: &BpfError) -> Option<Self> {
        let BpfError::Missing { feature, .. } = error else { return None };
        if *feature == object::INTERFACE.0 && self.ingress_ifindex {
            Some(Self { ingress_ifindex: false, ..self })
        } else if *feature == object::CGROUP_ID.0 && self.cgroup_id {
            Some(Self { cgroup_id: false, ..self })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_known_by_its_name() {
        assert_eq!("ingress_ifindex".parse(), Ok(Feature::IngressIfindex));
        assert_eq!("cgroup_id".parse(), Ok(Feature::CgroupId));
        let error = "ifindex".parse::<Feature>().unwrap_err();
        assert!(error.contains("ingress_ifindex"), "{error}");
    }

    #[test]
    fn what_is_left_out_is_missing() {
        assert_eq!(Features::all_but(&[]).missing(), []);
        let without = [Feature::IngressIfindex];
        assert_eq!(Features::all_but(&without).missing(), without);
        let without = [Feature::IngressIfindex, Feature::CgroupId];
        assert_eq!(Features::all_but(&without).missing(), without);
    }

    #[test]
    fn a_refused_feature_is_left_out_once_and_no_other() {
        let refused = |feature| BpfError::Missing {
            feature,
            since: "5.7",
            option: String::new(),
            cause: String::new(),
        };
        let all = Features::all_but(&[]);
        let less = all.without_refused(&refused(object::CGROUP_ID.0)).unwrap();
        assert_eq!(less.missing(), [Feature::CgroupId]);
        assert_eq!(less.without_refused(&refused(object::CGROUP_ID.0)), None);
        let least = less.without_refused(&refused(object::INTERFACE.0)).unwrap();
        assert_eq!(least.missing(), [Feature::IngressIfindex, Feature::CgroupId]);
        assert_eq!(all.without_refused(&refused("a hook")), None);
    }
}
