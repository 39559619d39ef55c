//! The name of a node: also a directory's name in three places, so it is checked before it is used.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// RFC 1123: labels of lower-case letters, digits and inner `-`, with dots between them. The same
/// names that Kubernetes gives nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

/// Why a text is no node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} {problem}; a node name is made of lower-case letters, digits and '-', in labels of \
     at most 63 characters with dots between them, for example node-1"
)]
pub struct NodeNameError {
    name: String,
    problem: &'static str,
}

impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this node's directory of pins. A BPF filesystem refuses names with dots, and no
    /// node name has an underscore, so that two nodes never share a directory.
    pub fn pin_name(&self) -> String {
        self.0.replace('.', "_")
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let refuse = |problem| Err(NodeNameError { name: name.to_owned(), problem });
        if name.is_empty() {
            return refuse("is empty");
        }
        if name.len() > 253 {
            return refuse("is longer than 253 characters");
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > 63 {
                return refuse("has an empty or too long label");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return refuse("has a label that begins or ends with '-'");
            }
            let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
            if !label.bytes().all(allowed) {
                return refuse("has a character that is not allowed");
            }
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_can_never_leave_its_directory() {
        for bad in ["", ".", "..", "a/b", "../x", "a..b", "-a", "a-", "A", "a_b", "a b", "a\0"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(64).parse::<NodeName>().is_err());
        for good in ["a", "node-1", "ip-10-0-0-1.eu-west-1.internal", "0"] {
            assert_eq!(good.parse::<NodeName>().expect(good).as_str(), good);
        }
    }

    #[test]
    fn the_error_says_what_and_shows_an_example() {
        let error = "Web/1".parse::<NodeName>().expect_err("a slash").to_string();
        assert!(error.starts_with("\"Web/1\" has a character that is not allowed"), "{error}");
        assert!(error.contains("node-1"), "{error}");
    }

    #[test]
    fn pins_have_no_dots_and_stay_apart() {
        let name: NodeName = "a.b-c".parse().expect("a name");
        assert_eq!(name.pin_name(), "a_b-c");
    }
}
