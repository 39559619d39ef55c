//! Values that a text is compared with: exact, `prefix*`, `*suffix`, `*` (policy.md 4.6).

use std::sync::Arc;

/// One value. A `*` anywhere but at one end is an ordinary character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// `*`: there, and not empty.
    Present,
}

impl Pattern {
    pub fn new(value: &str) -> Self {
        match (value.strip_prefix('*'), value.strip_suffix('*')) {
            _ if value == "*" => Self::Present,
            (Some(suffix), _) => Self::Suffix(suffix.into()),
            (None, Some(prefix)) => Self::Prefix(prefix.into()),
            (None, None) => Self::Exact(value.into()),
        }
    }

    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(value) => text == value.as_bytes(),
            Self::Prefix(value) => text.starts_with(value.as_bytes()),
            Self::Suffix(value) => text.ends_with(value.as_bytes()),
            Self::Present => !text.is_empty(),
        }
    }

    /// As [`Self::matches`], where names have no case.
    pub fn matches_any_case(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(value) => text.eq_ignore_ascii_case(value.as_bytes()),
            Self::Prefix(value) => {
                text.get(..value.len()).is_some_and(|t| t.eq_ignore_ascii_case(value.as_bytes()))
            }
            Self::Suffix(value) => text
                .len()
                .checked_sub(value.len())
                .is_some_and(|at| text[at..].eq_ignore_ascii_case(value.as_bytes())),
            Self::Present => !text.is_empty(),
        }
    }
}

/// The values of one field. Many exact ones, the usual case, are found by bisection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts {
    exact: Vec<Arc<str>>,
    others: Vec<Pattern>,
}

impl Texts {
    pub fn new<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> Self {
        let mut texts = Self::default();
        for value in values {
            match Pattern::new(value.as_ref()) {
                Pattern::Exact(value) => texts.exact.push(value),
                other => texts.others.push(other),
            }
        }
        texts.exact.sort_unstable();
        texts.exact.dedup();
        texts
    }

    pub fn any(&self, text: &[u8]) -> bool {
        self.exact.binary_search_by(|value| value.as_bytes().cmp(text)).is_ok()
            || self.others.iter().any(|pattern| pattern.matches(text))
    }
}

/// Whether `text` has the form of `pattern`, where each `*` stands for any characters or none.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last `*`, should what follows it not fit: one character further.
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
            }
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((after, from)) => {
                    (p, t) = (after, from + 1);
                    retry = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}
