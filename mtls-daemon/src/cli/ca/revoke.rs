//! `mtls-daemon ca revoke`

use std::time::SystemTime;

use anyhow::anyhow;
use clap::{ArgGroup, Args};

use super::{DirectoryArgs, KeptTrustDomainArgs, date, failed, workload};
use crate::ca::revoke::{self, Added, Held, Target};
use crate::cli::table::table;
use crate::cli::{Exit, Failed, print};
use crate::identity::NodeName;
use crate::identity::revocations::What;

/// Nodes hear within seconds, refuse new handshakes and end open connections. What is revoked is not
/// issued again until `--undo`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).args(["serial", "identity", "revoked_node", "list"]))]
pub(in crate::cli) struct RevokeArgs {
    /// One certificate, by its serial number in hex
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Every certificate of an identity: <namespace>/<service account> or a SPIFFE ID
    #[arg(long, value_name = "ID")]
    identity: Option<String>,
    /// A node, and every certificate that it obtained
    #[arg(long = "node", value_name = "NAME")]
    revoked_node: Option<NodeName>,
    /// Show what is revoked
    #[arg(long)]
    list: bool,
    /// Take it back
    #[arg(long, conflicts_with = "list")]
    undo: bool,
    /// For the logs of those who refuse it
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with_all = ["list", "undo"])]
    reason: String,
    #[command(flatten)]
    trust_domain: KeptTrustDomainArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub(super) fn revoke(args: RevokeArgs) -> Result<(), Failed> {
    let directory = args.directory.open()?;
    // A flag that cannot be is refused, also where it is not needed.
    let domain = match (&args.identity, &args.trust_domain.trust_domain) {
        (None, None) => None,
        _ => Some(args.trust_domain.of(&directory)?),
    };
    let target = match (args.serial, args.identity.zip(domain), args.revoked_node) {
        (Some(serial), ..) => {
            let hex = |c: char| c.is_ascii_hexdigit() || c == ':';
            if serial.is_empty() || !serial.trim_start_matches("0x").chars().all(hex) {
                let error = anyhow!("{serial:?} is no serial number: expected hex digits");
                return Err(Failed::new(Exit::Config, error));
            }
            Target::Serial(serial)
        }
        (_, Some((id, domain)), _) => Target::Identity(workload(&id, &domain)?.to_string()),
        (_, _, Some(node)) => Target::Node(node),
        (None, None, None) => {
            let held: Held = directory.read(revoke::FILE).map_err(failed)?;
            return print(&shown(&held));
        }
    };
    if args.undo {
        return match revoke::undo(&directory, &target).map_err(failed)? {
            0 => Err(anyhow!("that is not revoked: `ca revoke --list` shows what is").into()),
            removed => print(&format!("{removed} entries taken back\n")),
        };
    }
    let added = revoke::add(&directory, &target, &args.reason, SystemTime::now());
    let Added { entries, known } = added.map_err(failed)?;
    if !known {
        let what = match &target {
            Target::Serial(serial) => format!("this CA has no record of a certificate {serial}"),
            Target::Identity(id) => format!("this CA has no record of {id}"),
            Target::Node(node) => {
                format!("no node {node} has joined this CA: `ca nodes` lists them")
            }
        };
        eprintln!("warning: {what}; it is revoked all the same");
    }
    print(&format!("{entries} new entries\n"))
}

fn shown(held: &Held) -> String {
    let rows: Vec<_> = held
        .entries
        .iter()
        .map(|entry| {
            let (kind, name) = match &entry.what {
                What::Certificate { serial, .. } => ("certificate", serial.clone()),
                What::Identity(id) => ("identity", id.clone()),
                What::Node(node) => ("node", node.to_string()),
            };
            let until = entry.until.map_or_else(|| "undone".to_owned(), date);
            [kind.to_owned(), name, date(entry.at), until, entry.reason.clone()]
        })
        .collect();
    let list = table(["KIND", "NAME", "REVOKED", "UNTIL", "REASON"], &rows);
    format!("number {}\n{list}", held.number)
}
