//! Revoking, and taking it back.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::state::StateDir;
use super::{issued, seconds};
use crate::identity::ca::CaError;
use crate::identity::revocations::{RevocationList, Revoked, What, normal_serial};
use crate::identity::{NodeName, TrustDomain};

pub const FILE: &str = "revocations.json";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    pub number: u64,
    pub entries: Vec<Revoked>,
}

/// What an operator names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Serial(String),
    Identity(String),
    /// The node, and all certificates that it obtained.
    Node(NodeName),
}

impl Held {
    /// For signing: without what has expired by itself.
    pub fn list(&self, trust_domain: &TrustDomain, now: SystemTime) -> RevocationList {
        let now = seconds(now);
        let entries = self.entries.iter().filter(|it| it.until.is_none_or(|until| until > now));
        RevocationList {
            trust_domain: trust_domain.to_string(),
            number: self.number,
            issued: now,
            entries: entries.cloned().collect(),
        }
    }

    pub fn names_identity(&self, id: &str) -> bool {
        self.entries.iter().any(|it| matches!(&it.what, What::Identity(named) if named == id))
    }

    pub fn names_node(&self, node: &NodeName) -> bool {
        self.entries.iter().any(|it| matches!(&it.what, What::Node(named) if named == node))
    }

    pub fn names_serial(&self, serial: &str) -> bool {
        let serial = normal_serial(serial);
        self.entries.iter().any(
            |it| matches!(&it.what, What::Certificate { serial: named, .. } if *named == serial),
        )
    }
}

/// How many entries there are more than before. Revoking twice adds nothing.
pub fn add(
    directory: &StateDir,
    target: &Target,
    reason: &str,
    now: SystemTime,
) -> Result<usize, CaError> {
    // Issuing writes its record and looks at this list in one turn: a certificate is either in the
    // record that is read here, or its issuing sees what is written here.
    let turn = directory.turn()?;
    let mut held: Held = turn.read(FILE)?;
    let issued = issued::valid(directory, now)?;
    let before = held.entries.len();
    let mut put = |what: What, until| {
        if !held.entries.iter().any(|it| it.what == what) {
            held.entries.push(Revoked { what, at: seconds(now), reason: reason.to_owned(), until });
        }
    };
    let certificate = |it: &issued::Issued| What::Certificate {
        serial: it.serial.clone(),
        issuer: Some(it.issuer.clone()),
    };
    match target {
        Target::Serial(serial) => {
            let serial = normal_serial(serial);
            match issued.iter().find(|it| it.serial == serial) {
                Some(known) => put(certificate(known), Some(known.not_after)),
                // Another CA's, or from before the record: any issuer's, for good.
                None => put(What::Certificate { serial, issuer: None }, None),
            }
        }
        Target::Identity(id) => put(What::Identity(id.clone()), None),
        Target::Node(node) => {
            put(What::Node(node.clone()), None);
            for known in issued.iter().filter(|it| it.node.as_ref() == Some(node)) {
                put(certificate(known), Some(known.not_after));
            }
        }
    }
    let added = held.entries.len() - before;
    if added > 0 {
        held.number += 1;
        let now = seconds(now);
        held.entries.retain(|it| it.until.is_none_or(|until| until > now));
        turn.write(FILE, &held)?;
    }
    Ok(added)
}

/// Takes entries back; how many. A node's certificates stay revoked one by one: it gets new ones.
pub fn undo(directory: &StateDir, target: &Target) -> Result<usize, CaError> {
    let turn = directory.turn()?;
    let mut held: Held = turn.read(FILE)?;
    let before = held.entries.len();
    held.entries.retain(|it| match (&it.what, target) {
        (What::Certificate { serial, .. }, Target::Serial(named)) => {
            *serial != normal_serial(named)
        }
        (What::Identity(id), Target::Identity(named)) => id != named,
        (What::Node(node), Target::Node(named)) => node != named,
        _ => true,
    });
    let removed = before - held.entries.len();
    if removed > 0 {
        held.number += 1;
        turn.write(FILE, &held)?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, StateDir) {
        let place = tempfile::tempdir().unwrap();
        let directory = StateDir::open(&place.path().join("ca")).unwrap();
        (place, directory)
    }

    fn issue(directory: &StateDir, serial: &str, node: Option<&NodeName>, not_after: u64) {
        let issued = issued::Issued {
            serial: serial.to_owned(),
            issuer: "aa".to_owned(),
            id: "spiffe://cluster.local/ns/a/sa/b".to_owned(),
            node: node.cloned(),
            not_after,
        };
        issued::add(&directory.turn().unwrap(), &issued).unwrap();
    }

    #[test]
    fn revoking_a_node_reaches_what_it_obtained_and_nothing_else() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        let [one, two] = ["vm-1", "vm-2"].map(|name| NodeName::parse(name).unwrap());
        let later = seconds(now) + 100;
        issue(&directory, "1", Some(&one), later);
        issue(&directory, "2", Some(&two), later);
        issue(&directory, "3", Some(&one), seconds(now) - 1);
        issue(&directory, "4", None, later);
        let target = Target::Node(one.clone());
        assert_eq!(add(&directory, &target, "lost", now).unwrap(), 2);
        assert_eq!(add(&directory, &target, "lost", now).unwrap(), 0, "again");
        let held: Held = directory.read(FILE).unwrap();
        assert_eq!(held.number, 1);
        assert!(held.names_node(&one) && !held.names_node(&two));
        let named = ["1", "2", "3", "4"].map(|serial| held.names_serial(serial));
        assert_eq!(named, [true, false, false, false]);

        let domain = TrustDomain::parse("cluster.local").unwrap();
        let at_the_end = now + std::time::Duration::from_secs(200);
        assert_eq!(held.list(&domain, now).entries.len(), 2);
        assert_eq!(held.list(&domain, at_the_end).entries.len(), 1, "it expired by itself");
    }

    #[test]
    fn what_is_taken_back_counts_as_a_change() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        let serial = Target::Serial("0A:0B".to_owned());
        assert_eq!(add(&directory, &serial, "", now).unwrap(), 1);
        assert_eq!(undo(&directory, &Target::Identity("a0b".to_owned())).unwrap(), 0);
        assert_eq!(undo(&directory, &serial).unwrap(), 1);
        let held: Held = directory.read(FILE).unwrap();
        assert_eq!((held.number, held.entries.len()), (2, 0));
    }

    #[test]
    fn what_expired_is_forgotten() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        issue(&directory, "1", None, seconds(now) - 1);
        issue(&directory, "2", None, seconds(now) + 9);
        issued::compact(&directory, now).unwrap();
        let text = std::fs::read_to_string(directory.path(issued::FILE)).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(issued::valid(&directory, now).unwrap()[0].serial, "2");
    }
}
