//! What the kernel side uses where it is there and can do without, found by probing.

use std::fmt;
use std::str::FromStr;

/// Something that a newer kernel has and an older one is worked without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `sk_lookup` programs know the interface that a SYN came in by (Linux 5.17). Without it the
    /// daemon's connections to applications come from loopback addresses, and getpeername shows the
    /// client.
    IngressIfindex,
}

impl Feature {
    const ALL: [Self; 1] = [Self::IngressIfindex];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::IngressIfindex => "ingress_ifindex",
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
}

impl Features {
    /// All but these, before the kernel was asked.
    pub fn all_but(without: &[Feature]) -> Self {
        Self { ingress_ifindex: !without.contains(&Feature::IngressIfindex) }
    }

    /// What is done without.
    pub fn missing(self) -> Vec<Feature> {
        if self.ingress_ifindex { Vec::new() } else { vec![Feature::IngressIfindex] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_known_by_its_name() {
        assert_eq!("ingress_ifindex".parse(), Ok(Feature::IngressIfindex));
        let error = "ifindex".parse::<Feature>().unwrap_err();
        assert!(error.contains("ingress_ifindex"), "{error}");
    }

    #[test]
    fn what_is_left_out_is_missing() {
        assert_eq!(Features::all_but(&[]).missing(), []);
        let without = [Feature::IngressIfindex];
        assert_eq!(Features::all_but(&without).missing(), without);
    }
}
