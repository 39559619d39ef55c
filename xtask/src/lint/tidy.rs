//! The repository's own rules, which no other tool knows: who may name what, and how long a file is.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use super::tokens;
use crate::{shell::output, workspace::Workspace};

/// Words that only certain places may use. A place is a path or the start of one.
struct Fence {
    words: &'static [&'static str],
    /// Where the rule holds; empty means everywhere.
    within: &'static [&'static str],
    /// Where the words are welcome nevertheless.
    except: &'static [&'static str],
    why: &'static str,
}

const FENCES: &[Fence] = &[
    Fence {
        words: &["rustls", "tokio_rustls", "webpki"],
        within: &[],
        except: &["mtls-daemon/src/tls"],
        why: "TLS is named in `tls` alone",
    },
    Fence {
        words: &["aya", "aya_log", "aya_obj"],
        within: &[],
        except: &["mtls-daemon/src/bpf", "mtls-common/src"],
        why: "aya is named in `bpf` alone (mtls-common: its Pod promise)",
    },
    Fence {
        words: &["kube", "k8s_openapi"],
        within: &[],
        except: &["mtls-daemon/src/source/kubernetes"],
        why: "Kubernetes is named in `source/kubernetes` alone",
    },
    Fence {
        words: &["unsafe"],
        within: &[],
        except: &[
            "mtls-ebpf/src",
            "mtls-common/src",
            "mtls-daemon/src/bpf",
            "mtls-daemon/src/node",
        ],
        why: "unsafe code lives where the kernel is talked to",
    },
    Fence {
        words: &["anyhow"],
        within: &["mtls-daemon/src", "mtls-common/src"],
        except: &[
            "mtls-daemon/src/main.rs",
            "mtls-daemon/src/app.rs",
            "mtls-daemon/src/app",
            "mtls-daemon/src/cli",
        ],
        why: "a module's errors are typed; anyhow is for main, app and the command line",
    },
];

/// Leaves of the daemon, and what they must not import from it.
const LEAVES: &[(&str, &[&str])] = &[
    ("mtls-daemon/src/policy", &["proxy", "node", "bpf", "admin", "source", "app", "cli"]),
    ("mtls-daemon/src/mesh", &["proxy", "node", "bpf", "admin", "source", "app", "cli"]),
    ("mtls-daemon/src/identity", &["proxy", "node", "bpf", "admin", "source", "app", "cli"]),
];

/// Never committed, in tests neither.
const UNFINISHED: &[&str] = &["todo", "unimplemented", "dbg"];

const LONGEST: usize = 600;
const LONGEST_MAIN: usize = 100;

/// # Errors
/// Lists every place that breaks a rule, with the rule.
pub fn check(workspace: &Workspace) -> Result<()> {
    let list = output(Command::new("git").current_dir(workspace.root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ]))?;
    let mut faults = Vec::new();
    for path in list.lines() {
        let file = workspace.root().join(path);
        // Deleted, and the deletion is not committed yet.
        if file.exists() {
            let source =
                fs::read_to_string(&file).with_context(|| format!("cannot read {path}"))?;
            faults.extend(look_at(path, &source));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} places:\n  {}", faults.len(), faults.join("\n  "));
}

fn look_at(path: &str, source: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = source.lines().count();
    let longest = if path.ends_with("/main.rs") { LONGEST_MAIN } else { LONGEST };
    if lines > longest {
        faults.push(format!(
            "{path}: {lines} lines, at most {longest}: look for the second idea in it"
        ));
    }
    for (number, line) in tokens::code(source).lines().enumerate() {
        let words: Vec<_> = tokens::words(line).collect();
        let mut fault = |what: String| faults.push(format!("{path}:{}: {what}", number + 1));
        for fence in FENCES.iter().filter(|fence| fence.holds_in(path)) {
            for (word, after) in &words {
                // `#[unsafe(no_mangle)]` is an attribute, `mod anyhow` cannot be.
                if fence.words.contains(word) && *after != Some('(') {
                    fault(format!("`{word}`: {}", fence.why));
                }
            }
        }
        for (word, after) in &words {
            if *after == Some('!') && UNFINISHED.contains(word) {
                fault(format!("`{word}!`: unfinished work"));
            }
        }
        for (leaf, strangers) in LEAVES.iter().filter(|(leaf, _)| is_in(path, leaf)) {
            for pair in words.windows(2) {
                let [(first, Some(':')), (second, _)] = pair else { continue };
                if *first == "crate" && strangers.contains(second) {
                    fault(format!("`crate::{second}`: {leaf} is a leaf and imports no such thing"));
                }
            }
        }
        let squeezed: String = line.split_whitespace().collect();
        if squeezed.contains("[allow(") {
            fault("`allow`: use `#[expect(lint, reason = \"...\")]`".to_owned());
        }
        if squeezed.contains("#[ignore") {
            fault("`ignore`: a test that does not run keeps no promise".to_owned());
        }
    }
    faults
}

impl Fence {
    fn holds_in(&self, path: &str) -> bool {
        (self.within.is_empty() || self.within.iter().any(|place| is_in(path, place)))
            && !self.except.iter().any(|place| is_in(path, place))
    }
}

/// `place` is the file, its folder, or the module of its name.
fn is_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest == ".rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, source: &str, expected: &str) {
        let faults = look_at(path, source).join("; ");
        if expected.is_empty() {
            assert_eq!(faults, "", "{path}: {source}");
        } else {
            assert!(faults.contains(expected), "{path}: {source}: {faults}");
        }
    }

    #[test]
    fn fences_hold_outside_their_places_only() {
        check("mtls-daemon/src/proxy/relay.rs", "use rustls::Stream;", "`rustls`");
        check("mtls-daemon/src/proxy/relay.rs", "// rustls does this\nlet a = \"rustls\";", "");
        check("mtls-daemon/src/proxy/relay.rs", "use rustls_pki_types::X;", "");
        check("mtls-daemon/src/tls/server.rs", "use rustls::Stream;", "");
        check("mtls-daemon/src/node/netns.rs", "use aya::Ebpf;", "`aya`");
        check("mtls-daemon/src/node/netns.rs", "unsafe { libc::x() }", "");
        check("mtls-daemon/src/proxy/relay.rs", "unsafe { libc::x() }", "`unsafe`");
        check("mtls-daemon/src/proxy/relay.rs", "use anyhow::Result;", "`anyhow`");
        check("mtls-daemon/src/app.rs", "use anyhow::Result;", "");
        check("tests/src/lib.rs", "use anyhow::Result;", "");
    }

    #[test]
    fn leaves_import_nothing_from_above() {
        check("mtls-daemon/src/policy/mode.rs", "use crate::proxy::Failure;", "is a leaf");
        check("mtls-daemon/src/policy/mode.rs", "use crate::policy::Mode;", "");
        check("mtls-daemon/src/proxy/mod.rs", "use crate::node::Pod;", "");
    }

    #[test]
    fn unfinished_work_is_named_with_its_line() {
        check("tests/src/lib.rs", "fn a() {\n    todo!()\n}", "tests/src/lib.rs:2: `todo!`");
        check("tests/src/lib.rs", concat!("#[al", "low(dead_code)]"), "expect");
        check("tests/src/lib.rs", concat!("#[ign", "ore]"), "promise");
    }

    #[test]
    fn a_long_file_is_named() {
        check("mtls-daemon/src/main.rs", &"\n".repeat(101), "at most 100");
        check("mtls-daemon/src/app.rs", &"\n".repeat(101), "");
    }
}
