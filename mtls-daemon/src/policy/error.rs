//! What is wrong in a configuration file, where, and under which stable code.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Stable codes: scripts and tests match on these, never on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// A file or the directory cannot be read.
    FileRead,
    /// A file is larger than the limit.
    FileSize,
    /// A file holds no object.
    FileEmpty,
    YamlSyntax,
    /// Nesting, aliases or the number of nodes exceed the limits.
    YamlLimit,
    /// `apiVersion` and `kind` are missing or name nothing that is supported.
    ObjectKind,
    /// Two objects of one kind share namespace and name.
    ObjectDuplicate,
    FieldType,
    FieldValue,
    FieldMissing,
    /// Valid for Istio, refused here so that it is not silently left out.
    Unsupported,
    /// An address, port or network namespace is claimed twice.
    Conflict,
    /// A name refers to no object.
    Reference,
    /// What is in force in the place of an object that was refused.
    Refused,
    /// Warning: the field is not known: misspelt, or in a place where it has no meaning.
    WarnUnknown,
    /// Warning: Istio knows the field, and nothing here uses it.
    WarnIgnored,
    /// Warning: something else has taken its place.
    WarnDeprecated,
    /// Warning: the field is there and empty.
    WarnEmpty,
    /// Warning: valid, and probably not what was meant.
    WarnSuspicious,
    /// Warning: asks about a JWT, and none is validated.
    WarnNoToken,
}

impl Code {
    /// It is about a file as a whole: which objects it holds is not known.
    fn is_of_file(self) -> bool {
        matches!(
            self,
            Self::FileRead | Self::FileSize | Self::FileEmpty | Self::YamlSyntax | Self::YamlLimit
        )
    }

    /// Warnings refuse nothing.
    pub fn is_warning(self) -> bool {
        self.as_str().starts_with('W')
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::FileRead => "E_FILE_READ",
            Self::FileSize => "E_FILE_SIZE",
            Self::FileEmpty => "E_FILE_EMPTY",
            Self::YamlSyntax => "E_YAML_SYNTAX",
            Self::YamlLimit => "E_YAML_LIMIT",
            Self::ObjectKind => "E_OBJECT_KIND",
            Self::ObjectDuplicate => "E_OBJECT_DUPLICATE",
            Self::FieldType => "E_FIELD_TYPE",
            Self::FieldValue => "E_FIELD_VALUE",
            Self::FieldMissing => "E_FIELD_MISSING",
            Self::Unsupported => "E_UNSUPPORTED",
            Self::Conflict => "E_CONFLICT",
            Self::Reference => "E_REFERENCE",
            Self::Refused => "E_REFUSED",
            Self::WarnUnknown => "W_FIELD_UNKNOWN",
            Self::WarnIgnored => "W_FIELD_IGNORED",
            Self::WarnDeprecated => "W_DEPRECATED",
            Self::WarnEmpty => "W_FIELD_EMPTY",
            Self::WarnSuspicious => "W_SUSPICIOUS",
            Self::WarnNoToken => "W_NO_TOKEN",
        }
    }
}

/// One finding, error or warning:
/// `FILE:LINE: Kind namespace/name: field.path: reason [CODE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub file: Arc<str>,
    /// From 1; 0: the file as a whole.
    pub line: u32,
    /// `Kind namespace/name`, or empty before the object is known.
    pub object: Arc<str>,
    /// For example `spec.portLevelMtls[8080].mode`; may be empty.
    pub field: String,
    pub reason: String,
    pub code: Code,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        for part in [&*self.object, &*self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        write!(f, "{} [{}]", self.reason, self.code.as_str())
    }
}

impl std::error::Error for ConfigError {}

/// How many objects `errors` refuse. A file of which nobody can say what it holds is one, unless objects
/// that were in it before are refused with it.
pub fn refused_objects(errors: &[ConfigError]) -> usize {
    let refused = || errors.iter().filter(|error| error.code == Code::Refused);
    let named: BTreeSet<&str> = refused().map(|error| &*error.file).collect();
    let unclear: BTreeSet<&str> = errors
        .iter()
        .filter(|error| error.code.is_of_file() && !named.contains(&*error.file))
        .map(|error| &*error.file)
        .collect();
    refused().count() + unclear.len()
}

/// Where an object was read from, and what it is called in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub file: Arc<str>,
    pub line: u32,
    /// `Kind namespace/name`.
    pub object: Arc<str>,
}

impl Origin {
    /// A finding about this object as a whole, found when objects are put together.
    pub fn error(&self, field: &str, code: Code, reason: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.file.clone(),
            line: self.line,
            object: self.object.clone(),
            field: field.to_owned(),
            reason: reason.into(),
            code,
        }
    }

    /// `Kind namespace/name (FILE:LINE)`, to name the other side of a conflict.
    pub fn place(&self) -> String {
        format!("{} ({}:{})", self.object, self.file, self.line)
    }
}

/// Collects findings while one file is read; every error of a file is reported, not just the first.
#[derive(Debug, Default)]
pub struct Report {
    pub file: Arc<str>,
    pub object: Arc<str>,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
}

impl Report {
    pub fn new(file: &str) -> Self {
        Self { file: file.into(), ..Self::default() }
    }

    pub fn error(&mut self, line: u32, field: &str, code: Code, reason: impl Into<String>) {
        let finding = self.finding(line, field, code, reason.into());
        self.errors.push(finding);
    }

    pub fn warn(&mut self, line: u32, field: &str, code: Code, reason: impl Into<String>) {
        let finding = self.finding(line, field, code, reason.into());
        self.warnings.push(finding);
    }

    fn finding(&self, line: u32, field: &str, code: Code, reason: String) -> ConfigError {
        ConfigError {
            file: self.file.clone(),
            line,
            object: self.object.clone(),
            field: field.to_owned(),
            reason,
            code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_understood_is_an_object_unless_its_own_are_known() {
        let error = |file: &str, object: &str, code: Code| {
            Origin { file: file.into(), line: 1, object: object.into() }.error("", code, "why")
        };
        let errors = [
            error("a.yaml", "PeerAuthentication full/a", Code::FieldValue),
            error("a.yaml", "PeerAuthentication full/a", Code::Refused),
            error("new.yaml", "", Code::YamlSyntax),
            error("new.yaml", "", Code::YamlLimit),
            error("old.yaml", "", Code::FileRead),
            error("old.yaml", "PeerAuthentication full/b", Code::Refused),
            error("old.yaml", "PeerAuthentication full/c", Code::Refused),
        ];
        assert_eq!(refused_objects(&errors), 4);
        assert_eq!(refused_objects(&errors[2..3]), 1);
        assert_eq!(refused_objects(&[]), 0);
    }
}
