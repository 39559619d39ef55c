//! Path templates: `{*}` is one segment, `{**}` any tail (policy.md 4.6).

use std::sync::Arc;

use super::text::Pattern;

/// One value of `paths`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPattern {
    Text(Pattern),
    Template(Template),
}

/// A template's parts in order. After `{**}` only text can follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Up to the end, or up to `{**}`.
    start: Vec<Part>,
    /// With `{**}`: what the path ends with.
    end: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Arc<str>),
    Segment,
}

const SEGMENT: &str = "{*}";
const TAIL: &str = "{**}";

impl PathPattern {
    /// # Errors
    /// What is wrong with the template.
    pub fn new(value: &str) -> Result<Self, &'static str> {
        check(value)?;
        if is_template(value) {
            Ok(Self::Template(Template::new(value)))
        } else {
            Ok(Self::Text(Pattern::new(value)))
        }
    }

    /// `path` has no query.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(pattern) => pattern.matches(path.as_bytes()),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl Template {
    fn new(value: &str) -> Self {
        let (start, end) = match value.split_once(TAIL) {
            Some((start, end)) => (start, Some(end.into())),
            None => (value, None),
        };
        let mut parts = Vec::new();
        for (index, text) in start.split(SEGMENT).enumerate() {
            if index > 0 {
                parts.push(Part::Segment);
            }
            if !text.is_empty() {
                parts.push(Part::Text(text.into()));
            }
        }
        Self { start: parts, end }
    }

    fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        for part in &self.start {
            let after = match part {
                Part::Text(text) => rest.strip_prefix(&**text),
                Part::Segment => {
                    let end = rest.find('/').unwrap_or(rest.len());
                    (end > 0).then(|| &rest[end..])
                }
            };
            let Some(after) = after else { return false };
            rest = after;
        }
        match &self.end {
            Some(end) => rest.ends_with(&**end),
            None => rest.is_empty(),
        }
    }
}

fn is_template(value: &str) -> bool {
    value.contains(SEGMENT) || value.contains(TAIL)
}

/// Whether a value of `paths` is one: braces only as templates, each a whole segment, `{**}` the
/// last of them, and between them only characters that a path can have.
///
/// # Errors
/// What is wrong.
pub fn check(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        return Err("must not be empty");
    }
    let template = is_template(value);
    if template && !value.starts_with('/') {
        return Err("a path template begins with /, as every path");
    }
    let mut tail = false;
    for segment in value.trim_matches('/').split('/') {
        match segment {
            SEGMENT | TAIL if tail => return Err("no template can follow {**}"),
            SEGMENT => {}
            TAIL => tail = true,
            _ if segment.contains(['{', '}']) => {
                return Err("braces are only for {*} and {**}, each a whole segment");
            }
            _ if template && !is_literal(segment) => {
                return Err(
                    "beside a template, a segment has only characters of a path, and no wildcard",
                );
            }
            _ => {}
        }
    }
    Ok(())
}

/// RFC 3986's pchar without `*`, which would be taken for a wildcard.
fn is_literal(segment: &str) -> bool {
    !segment.is_empty()
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b))
}
