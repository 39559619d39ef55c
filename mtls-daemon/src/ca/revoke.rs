//! Revoking, and taking it back.

use std::collections::HashSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::nodes::{self, Nodes};
use super::state::StateDir;
use super::{issued, seconds};
use crate::identity::ca::CaError;
use crate::identity::revocations::{RevocationList, Revoked, What, normal_serial};
use crate::identity::{NodeName, TrustDomain};

pub const FILE: &str = "revocations.json";

/// What ended is kept for so long, in seconds: a clock that was ahead for a while takes nothing away.
const KEPT: u64 = 7 * 24 * 3600;

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

/// What revoking did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// How many there are more than before.
    pub entries: usize,
    /// The CA has heard of it. Otherwise its name may be misspelt.
    pub known: bool,
}

/// Revoking twice adds nothing.
pub fn add(
    directory: &StateDir,
    target: &Target,
    reason: &str,
    now: SystemTime,
) -> Result<Added, CaError> {
    // Issuing writes its record and looks at this list in one turn: a certificate is either in the
    // record that is read here, or its issuing sees what is written here.
    let turn = directory.turn()?;
    let mut held: Held = turn.read(FILE)?;
    // By name: a node may have obtained very many.
    let mut listed: HashSet<String> = held.entries.iter().map(|it| name(&it.what)).collect();
    let before = held.entries.len();
    let mut put = |what: What, until| {
        if listed.insert(name(&what)) {
            held.entries.push(Revoked { what, at: seconds(now), reason: reason.to_owned(), until });
        }
    };
    let certificate = |it: issued::Issued| {
        let until = Some(it.until());
        (What::Certificate { serial: it.serial, issuer: Some(it.issuer) }, until)
    };
    let known = match target {
        Target::Serial(serial) => {
            let serial = normal_serial(serial);
            let mut issued = issued::valid(directory, now, |it| it.serial == serial)?;
            let (what, until) = match issued.pop() {
                Some(known) => certificate(known),
                // Another CA's, or from before the record: any issuer's, for good.
                None => (What::Certificate { serial, issuer: None }, None),
            };
            put(what, until);
            until.is_some()
        }
        Target::Identity(id) => {
            put(What::Identity(id.clone()), None);
            true
        }
        Target::Node(node) => {
            put(What::Node(node.clone()), None);
            let issued = issued::valid(directory, now, |it| it.node.as_ref() == Some(node))?;
            let obtained = !issued.is_empty();
            for (what, until) in issued.into_iter().map(certificate) {
                put(what, until);
            }
            obtained || turn.read::<Nodes>(nodes::FILE)?.0.contains_key(node)
        }
    };
    let entries = held.entries.len() - before;
    if entries > 0 {
        held.number += 1;
        let now = seconds(now);
        held.entries.retain(|it| it.until.is_none_or(|until| until.saturating_add(KEPT) > now));
        turn.write(FILE, &held)?;
    }
    Ok(Added { entries, known })
}

/// Tells one entry from another.
fn name(what: &What) -> String {
    match what {
        What::Certificate { serial, issuer } => {
            format!("certificate {serial} of {}", issuer.as_deref().unwrap_or("anybody"))
        }
        What::Identity(id) => format!("identity {id}"),
        What::Node(node) => format!("node {node}"),
    }
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
        issue(&directory, "3", Some(&one), seconds(now) - 601);
        issue(&directory, "4", None, later);
        let target = Target::Node(one.clone());
        let added = |entries| Added { entries, known: true };
        assert_eq!(add(&directory, &target, "lost", now).unwrap(), added(2));
        assert_eq!(add(&directory, &target, "lost", now).unwrap(), added(0), "again");
        let held: Held = directory.read(FILE).unwrap();
        assert_eq!(held.number, 1);
        assert!(held.names_node(&one) && !held.names_node(&two));
        let named = ["1", "2", "3", "4"].map(|serial| held.names_serial(serial));
        assert_eq!(named, [true, false, false, false]);

        let domain = TrustDomain::parse("cluster.local").unwrap();
        let after = |seconds| {
            let now = now + std::time::Duration::from_secs(seconds);
            held.list(&domain, now).entries.len()
        };
        assert_eq!((after(0), after(200)), (2, 2), "somebody's clock is behind");
        assert_eq!(after(701), 1, "it expired by itself");
    }

    #[test]
    fn a_clock_that_is_ahead_for_a_while_takes_no_entry_away() {
        let (_place, directory) = directory();
        let (now, day) = (SystemTime::now(), std::time::Duration::from_secs(24 * 3600));
        issue(&directory, "1", None, seconds(now) + 100);
        let serial = |serial: &str| Target::Serial(serial.to_owned());
        add(&directory, &serial("1"), "", now).unwrap();
        let listed = |now| {
            let held: Held = directory.read(FILE).unwrap();
            held.list(&TrustDomain::parse("cluster.local").unwrap(), now).entries.len()
        };
        add(&directory, &serial("2"), "", now + 2 * day).unwrap();
        assert_eq!((listed(now + 2 * day), listed(now)), (1, 2));
        add(&directory, &serial("3"), "", now + 9 * day).unwrap();
        assert_eq!(listed(now), 2, "it ended a week ago");
    }

    #[test]
    fn what_is_taken_back_counts_as_a_change() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        let serial = Target::Serial("0A:0B".to_owned());
        assert_eq!(add(&directory, &serial, "", now).unwrap().entries, 1);
        assert_eq!(undo(&directory, &Target::Identity("a0b".to_owned())).unwrap(), 0);
        assert_eq!(undo(&directory, &serial).unwrap(), 1);
        let held: Held = directory.read(FILE).unwrap();
        assert_eq!((held.number, held.entries.len()), (2, 0));
    }

    #[test]
    fn what_expired_is_forgotten() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        issue(&directory, "1", None, seconds(now) - 601);
        issue(&directory, "2", None, seconds(now) + 9);
        issued::compact(&directory, now).unwrap();
        let text = std::fs::read_to_string(directory.path(issued::FILE)).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(issued::valid(&directory, now, |_| true).unwrap()[0].serial, "2");
    }

    #[test]
    fn what_the_ca_never_heard_of_is_told_from_what_it_knows() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        let [one, two] = ["vm-1", "vm-2"].map(|name| NodeName::parse(name).unwrap());
        issue(&directory, "a1", Some(&one), seconds(now) + 100);
        let known = |target| add(&directory, &target, "", now).unwrap();
        assert_eq!(known(Target::Serial("00:A1".to_owned())), Added { entries: 1, known: true });
        assert_eq!(known(Target::Serial("a2".to_owned())), Added { entries: 1, known: false });
        assert!(known(Target::Node(one)).known);
        assert_eq!(known(Target::Node(two)), Added { entries: 1, known: false });
    }

    #[test]
    fn a_node_that_obtained_very_much_is_revoked_soon() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        let node = NodeName::parse("vm-1").unwrap();
        let lines: String = (0..100_000)
            .map(|number| {
                let until = seconds(now) + 100;
                format!(
                    "{{\"serial\":\"{number:x}\",\"issuer\":\"aa\",\"id\":\"x\",\"node\":\"vm-1\",\
                     \"not_after\":{until}}}\n"
                )
            })
            .collect();
        directory.turn().unwrap().write_text(issued::FILE, &lines).unwrap();
        let began = std::time::Instant::now();
        let added = add(&directory, &Target::Node(node), "", now).unwrap();
        assert_eq!(added.entries, 100_001);
        // Comparing each with each takes minutes.
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}", began.elapsed());
    }
}
