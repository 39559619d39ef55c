//! `exportTo`: which namespaces see an object.

use std::sync::Arc;

use super::error::{Code, Report};
use super::field::Field;

/// Clients of each namespace that is named are planned for.
const MOST_NAMES: usize = 1000;

/// Who sees an object of namespace `own`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportTo {
    /// Absent, empty, or `*`.
    All,
    /// `.` alone, or the own namespace's name alone.
    Own,
    /// Names, with the own namespace among them if `.` was.
    Names(Vec<Arc<str>>),
}

impl ExportTo {
    pub fn visible_from(&self, own: &str, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Own => own == namespace,
            Self::Names(names) => names.iter().any(|name| **name == *namespace),
        }
    }

    /// policy.md 2.1.5: `.` with `*`, `*` with names, duplicates and `.` beside the own name are refused.
    pub fn read(field: Option<Field<'_>>, own: &str, report: &mut Report) -> Self {
        let Some(field) = field else { return Self::All };
        let values: Vec<&str> = field.texts(report).into_iter().map(|(_, text)| text).collect();
        if values.len() > MOST_NAMES {
            let reason =
                format!("{} namespaces are more than {MOST_NAMES}: use \"*\"", values.len());
            field.error(report, Code::FieldValue, reason);
            return Self::Own;
        }
        let mut sorted = values.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            field.error(report, Code::FieldValue, "a value appears twice");
        }
        if values.len() > 1 && values.contains(&"*") {
            field.error(report, Code::FieldValue, "\"*\" already means every namespace");
        }
        if values.contains(&".") && values.contains(&own) {
            field.error(report, Code::FieldValue, format!("\".\" and {own:?} are the same"));
        }
        if values.contains(&"~") {
            field.error(report, Code::Unsupported, "\"~\" is not supported");
        }
        match values.as_slice() {
            [] => Self::All,
            names if names.contains(&"*") => Self::All,
            [one] if *one == "." || *one == own => Self::Own,
            names => Self::Names(
                names
                    .iter()
                    .map(|name| if *name == "." { own.into() } else { (*name).into() })
                    .collect(),
            ),
        }
    }
}
