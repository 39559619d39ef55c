//! Typed reading of a document: each value knows its path, each wrong value is reported with line
//! and path, and what nobody asked for is reported as ignored.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::error::{Code, Report};
use super::near::nearest;
use super::yaml::{Entry, Node, Value};

/// A value and its path from the document's root.
#[derive(Debug, Clone)]
pub struct Field<'n> {
    pub path: String,
    pub node: &'n Node,
    /// Here a slip would open what should be closed: what is empty below is an error, not a warning.
    pub strict: bool,
}

/// The fields of a mapping; remembers which were asked for.
#[derive(Debug)]
pub struct Fields<'n> {
    pub path: String,
    pub line: u32,
    strict: bool,
    entries: &'n [Entry],
    seen: Vec<bool>,
    /// Names that were asked for, to compare misspelt ones with.
    known: Vec<&'static str>,
}

impl<'n> Field<'n> {
    pub fn root(node: &'n Node) -> Self {
        Self { path: String::new(), node, strict: false }
    }

    pub fn line(&self) -> u32 {
        self.node.line
    }

    pub fn error(&self, report: &mut Report, code: Code, reason: impl Into<String>) {
        report.error(self.node.line, &self.path, code, reason);
    }

    pub fn warn(&self, report: &mut Report, code: Code, reason: impl Into<String>) {
        report.warn(self.node.line, &self.path, code, reason);
    }

    fn wrong_type(&self, report: &mut Report, wanted: &str) {
        let found = self.node.value.kind();
        self.error(report, Code::FieldType, format!("{wanted} is expected, this is {found}"));
    }

    pub fn string(&self, report: &mut Report) -> Option<&'n str> {
        match &self.node.value {
            Value::String(text) => Some(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                self.wrong_type(report, "a string (put it in quotes)");
                None
            }
            _ => {
                self.wrong_type(report, "a string");
                None
            }
        }
    }

    /// A string that is not empty.
    pub fn text(&self, report: &mut Report) -> Option<&'n str> {
        let text = self.string(report)?;
        if text.is_empty() {
            self.error(report, Code::FieldValue, "must not be empty");
            return None;
        }
        Some(text)
    }

    pub fn boolean(&self, report: &mut Report) -> Option<bool> {
        match &self.node.value {
            Value::Bool(value) => Some(*value),
            _ => {
                self.wrong_type(report, "true or false");
                None
            }
        }
    }

    /// A TCP port, 1 to 65535.
    pub fn port(&self, report: &mut Report) -> Option<u16> {
        match &self.node.value {
            Value::Integer(number) => match u16::try_from(*number) {
                Ok(port) if port > 0 => Some(port),
                _ => {
                    self.error(
                        report,
                        Code::FieldValue,
                        format!("{number} is not a port, 1-65535"),
                    );
                    None
                }
            },
            _ => {
                self.wrong_type(report, "a port number, 1-65535,");
                None
            }
        }
    }

    /// An IP address; v4-mapped IPv6 is the IPv4 address that it maps.
    pub fn ip(&self, report: &mut Report) -> Option<IpAddr> {
        let text = self.text(report)?;
        match text.parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                if let Some(what) = not_a_workloads(address) {
                    let reason = format!("{text} is {what}, no address of one workload or service");
                    self.error(report, Code::FieldValue, reason);
                    return None;
                }
                Some(address)
            }
            Err(_) => {
                let reason = if text.contains('/') && !text.starts_with("unix:") {
                    format!("{text:?} is a range: list each address")
                } else {
                    format!(
                        "{text:?} is not an IP address; host names and sockets are not resolved"
                    )
                };
                self.error(report, Code::FieldValue, reason);
                None
            }
        }
    }

    pub fn list(&self, report: &mut Report) -> Vec<Field<'n>> {
        match &self.node.value {
            Value::List(list) => list
                .iter()
                .enumerate()
                .map(|(i, node)| Field {
                    path: format!("{}[{i}]", self.path),
                    node,
                    strict: self.strict,
                })
                .collect(),
            _ => {
                self.wrong_type(report, "a list");
                Vec::new()
            }
        }
    }

    /// Every string of a list.
    pub fn texts(&self, report: &mut Report) -> Vec<(Field<'n>, &'n str)> {
        let mut texts = Vec::new();
        for item in self.list(report) {
            if let Some(text) = item.text(report) {
                texts.push((item, text));
            }
        }
        texts
    }

    pub fn fields(&self, report: &mut Report) -> Option<Fields<'n>> {
        match &self.node.value {
            Value::Map(entries) => Some(Fields {
                path: self.path.clone(),
                line: self.node.line,
                strict: self.strict,
                entries,
                seen: vec![false; entries.len()],
                known: Vec::new(),
            }),
            _ => {
                self.wrong_type(report, "a mapping");
                None
            }
        }
    }

    /// A mapping with free keys, such as labels: `path[key]`.
    pub fn entries(&self, report: &mut Report) -> Vec<(&'n str, Field<'n>)> {
        match &self.node.value {
            Value::Map(entries) => entries
                .iter()
                .map(|entry| {
                    let path = format!("{}[{}]", self.path, entry.key);
                    (entry.key.as_str(), Field { path, node: &entry.node, strict: self.strict })
                })
                .collect(),
            _ => {
                self.wrong_type(report, "a mapping");
                Vec::new()
            }
        }
    }

    /// Labels: string to string.
    pub fn labels(&self, report: &mut Report) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (key, field) in self.entries(report) {
            if key.is_empty() {
                field.error(report, Code::FieldValue, "a label's key must not be empty");
            } else if let Some(value) = field.string(report) {
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
        labels
    }

    /// `matchLabels` and the like: labels without wildcards (policy.md 1.7).
    pub fn selector_labels(&self, report: &mut Report) -> BTreeMap<String, String> {
        let labels = self.labels(report);
        for (key, value) in &labels {
            if key.contains('*') || value.contains('*') {
                self.error(
                    report,
                    Code::FieldValue,
                    format!("{key}: {value}: a selector has no wildcards"),
                );
            }
        }
        labels
    }

    /// Named ports: string to port number.
    pub fn named_ports(&self, report: &mut Report) -> BTreeMap<String, u16> {
        let mut ports = BTreeMap::new();
        for (key, field) in self.entries(report) {
            if let Some(port) = field.port(report) {
                ports.insert(key.to_owned(), port);
            }
        }
        ports
    }
}

/// Addresses that mean something else on every host, or that no connection can go to.
pub fn not_a_workloads(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if link_local {
        Some("a link-local address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else {
        None
    }
}

impl<'n> Fields<'n> {
    /// What follows is read strictly: see [`Field::strict`].
    pub fn strictly(mut self) -> Self {
        self.strict = true;
        self
    }

    /// The field's value; a null is reported as empty and counts as absent.
    pub fn take(&mut self, report: &mut Report, name: &'static str) -> Option<Field<'n>> {
        self.known.push(name);
        let index = self.entries.iter().position(|entry| entry.key == name)?;
        self.seen[index] = true;
        let entry = &self.entries[index];
        let path = self.path_of(name);
        if entry.node.value == Value::Null {
            if self.strict {
                let reason = "is empty: check the indentation below it, or leave it out";
                report.error(entry.line, &path, Code::FieldMissing, reason);
            } else {
                report.warn(
                    entry.line,
                    &path,
                    Code::WarnEmpty,
                    "is empty and counts as absent: check the indentation below it",
                );
            }
            return None;
        }
        Some(Field { path, node: &entry.node, strict: self.strict })
    }

    /// As [`Self::take`], where a null has a meaning of its own: None absent, `Some(None)` null.
    pub fn take_or_null(&mut self, name: &'static str) -> Option<Option<Field<'n>>> {
        self.known.push(name);
        let index = self.entries.iter().position(|entry| entry.key == name)?;
        self.seen[index] = true;
        let node = &self.entries[index].node;
        let field = Field { path: self.path_of(name), node, strict: self.strict };
        Some((node.value != Value::Null).then_some(field))
    }

    /// As [`Self::take`]; absence is an error.
    pub fn need(&mut self, report: &mut Report, name: &'static str) -> Option<Field<'n>> {
        let found = self.take(report, name);
        let already_said = self.strict && self.has(name);
        if found.is_none() && !already_said {
            report.error(self.line, &self.path_of(name), Code::FieldMissing, "is required");
        }
        found
    }

    /// Marks a field as known although nothing reads it.
    pub fn skip(&mut self, name: &'static str) {
        self.known.push(name);
        for (seen, entry) in self.seen.iter_mut().zip(self.entries) {
            *seen |= entry.key == name;
        }
    }

    /// Warns about fields that Istio knows and nothing here uses.
    pub fn ignore(&mut self, report: &mut Report, names: &[&'static str]) {
        for name in names {
            self.known.push(name);
            for (index, entry) in self.entries.iter().enumerate() {
                if entry.key == *name && !self.seen[index] {
                    self.seen[index] = true;
                    let path = self.path_of(name);
                    report.warn(entry.line, &path, Code::WarnIgnored, "is not used here");
                }
            }
        }
    }

    /// True if the mapping is written `{}`.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True if the field is written without a value.
    pub fn is_null(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == name && entry.node.value == Value::Null)
    }

    /// True if the field is written, whatever its value.
    pub fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == name)
    }

    /// Reports every field that nobody asked for.
    pub fn finish(self, report: &mut Report) {
        for (seen, entry) in self.seen.iter().zip(self.entries) {
            if *seen {
                continue;
            }
            let path = self.path_of(&entry.key);
            let free = self.known.iter().copied().filter(|name| !self.has(name));
            let hint = nearest(&entry.key, free)
                .map(|name| format!(": did you mean {name}?"))
                .unwrap_or_default();
            let reason = format!("is not known here and is ignored{hint}");
            report.warn(entry.line, &path, Code::WarnUnknown, reason);
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
