//! YAML text to documents, within bounds: a hostile or broken file costs a clear error, never
//! memory, stack or time.

use serde_saphyr::{Error, Options};

use super::error::{Code, Report};
use super::yaml::{Node, Value};

/// How much one configuration file may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest file, in bytes.
    pub max_bytes: usize,
    /// Deepest nesting of mappings and lists. Istio's kinds need less than 12.
    pub max_depth: usize,
    /// Scalars, mappings and lists in one file, after aliases are expanded.
    pub max_nodes: usize,
    pub max_documents: usize,
    /// `*alias` uses in one file.
    pub max_aliases: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 4 * 1024 * 1024,
            max_depth: 32,
            max_nodes: 250_000,
            max_documents: 20_000,
            max_aliases: 1_000,
        }
    }
}

/// Stack of the thread that parses. A level of nesting takes up to 80 KiB in an unoptimised build
/// (measured), so `max_depth` levels would not fit a thread of unknown size.
const PARSER_STACK: usize = 16 * 1024 * 1024;

/// What a document holds: itself, or the items of a `List`, as `kubectl get -o yaml` writes several
/// objects.
pub fn objects(document: Node) -> Vec<Node> {
    let Value::Map(entries) = &document.value else { return vec![document] };
    let find = |key: &str| entries.iter().find(|entry| entry.key == key).map(|e| &e.node.value);
    match (find("kind"), find("items")) {
        (Some(Value::String(kind)), Some(Value::List(items))) if kind.ends_with("List") => {
            items.clone()
        }
        _ => vec![document],
    }
}

/// The documents of one file; empty ones are left out. None: an error was reported.
pub fn documents(text: &[u8], limits: &Limits, report: &mut Report) -> Option<Vec<Node>> {
    if text.len() > limits.max_bytes {
        report.error(
            0,
            "",
            Code::FileSize,
            format!("{} bytes are more than the limit of {}", text.len(), limits.max_bytes),
        );
        return None;
    }
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let before = &text[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|b| **b == b'\n').count();
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            report.error(line, "", Code::YamlSyntax, "not UTF-8");
            return None;
        }
    };
    let parsed = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("parse-yaml".to_owned())
            .stack_size(PARSER_STACK)
            .spawn_scoped(scope, || {
                serde_saphyr::from_multiple_with_options::<Node>(text, options(limits))
            })
            .map(|thread| thread.join())
    });
    let parsed = match parsed {
        Ok(Ok(parsed)) => parsed,
        Ok(Err(_)) => {
            report.error(0, "", Code::YamlSyntax, "the parser failed on this file");
            return None;
        }
        Err(error) => {
            report.error(0, "", Code::FileRead, format!("no thread to parse on: {error}"));
            return None;
        }
    };
    match parsed {
        Ok(documents) => Some(documents),
        Err(error) => {
            let error = error.without_snippet();
            let line = error.location().map_or(0, |at| at.line());
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            let code = match cause(error) {
                Error::Budget { .. }
                | Error::AliasReplayLimitExceeded { .. }
                | Error::AliasReplayStackDepthExceeded { .. }
                | Error::AliasExpansionLimitExceeded { .. }
                | Error::AliasReplayCounterOverflow { .. } => Code::YamlLimit,
                // The scanner's own bound on nesting, which has no kind of its own.
                other if other.to_string().contains("recursion limit") => Code::YamlLimit,
                _ => Code::YamlSyntax,
            };
            let reason = match cause(error) {
                Error::DuplicateMappingKey { key: Some(key), .. } => {
                    format!("key {key:?} is there twice in one mapping")
                }
                Error::DuplicateMappingKey { .. } => "a key is there twice in one mapping".into(),
                other => one_line(&other.to_string()),
            };
            report.error(line, "", code, reason);
            None
        }
    }
}

fn options(limits: &Limits) -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: limits.max_depth,
            flow_nesting_limit: limits.max_depth,
            max_nodes: limits.max_nodes,
            max_events: limits.max_nodes.saturating_mul(4),
            max_documents: limits.max_documents,
            max_aliases: limits.max_aliases,
            max_anchors: limits.max_aliases,
            max_recorded_anchor_events: limits.max_nodes,
            max_total_scalar_bytes: limits.max_bytes,
            max_merge_keys: limits.max_aliases,
            max_inclusion_depth: 0,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: limits.max_nodes,
            max_replay_stack_depth: 16,
        },
        // YAML 1.2: a label `on` or a name `n` is a string.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// The error itself, where it came up inside an alias.
fn cause(mut error: &Error) -> &Error {
    while let Error::AliasError { error: inner, .. } | Error::WithSnippet { error: inner, .. } =
        error
    {
        error = inner;
    }
    error
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
