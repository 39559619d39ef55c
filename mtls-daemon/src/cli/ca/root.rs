//! `mtls-daemon ca root`

use std::time::SystemTime;

use clap::{Args, Subcommand};

use super::{DirectoryArgs, RootKeyArgs, TrustDomainArgs, date, failed};
use crate::ca::roots::{self, Phase, Roots, StepError};
use crate::ca::signing::pem_of;
use crate::cli::{Exit, Failed, print};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RootVerb {
    /// Print the certificates of all roots, as nodes need them for --ca-root
    Show(ShowArgs),
    /// Step 1: make a new root, which is trusted beside the old one and does not sign yet
    Prepare(PrepareArgs),
    /// Step 2: sign with the new root; the old one is still trusted
    Switch(StepArgs),
    /// Step 3: trust the old root no more, and remove its key
    Retire(StepArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// Also what each one does at the moment
    #[arg(long)]
    phases: bool,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PrepareArgs {
    #[command(flatten)]
    key: RootKeyArgs,
    #[command(flatten)]
    trust_domain: TrustDomainArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StepArgs {
    /// Do not wait for clients that hear of a step only when they renew
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    directory: DirectoryArgs,
}

impl From<StepError> for Failed {
    fn from(error: StepError) -> Self {
        let exit = match error {
            StepError::Ca(_) => Exit::Failure,
            StepError::Order(_) | StepError::TooEarly { .. } => Exit::Config,
        };
        Self::new(exit, error)
    }
}

pub(super) fn root(verb: RootVerb) -> Result<(), Failed> {
    let now = SystemTime::now();
    match verb {
        RootVerb::Show(args) => show(args),
        RootVerb::Prepare(args) => {
            let sealing = args.key.sealing()?;
            let (directory, domain) = (args.directory.open()?, args.trust_domain.trust_domain);
            let name =
                roots::prepare(&directory, &domain, args.key.root_key, sealing.as_ref(), now)?;
            print(&format!("{name} is trusted; `ca root switch` once everybody has heard\n"))
        }
        RootVerb::Switch(args) => {
            let name = roots::switch(&args.directory.open()?, args.force, now)?;
            print(&format!("{name} signs; `ca root retire` once everybody has renewed\n"))
        }
        RootVerb::Retire(args) => {
            let name = roots::retire(&args.directory.open()?, args.force, now)?;
            print(&format!("{name} is trusted no more, and its key is removed\n"))
        }
    }
}

fn show(args: ShowArgs) -> Result<(), Failed> {
    let directory = args.directory.open()?;
    let anchors = roots::anchors(&directory).map_err(failed)?;
    let mut out = String::new();
    if args.phases {
        let index: Roots = directory.read(roots::FILE).map_err(failed)?;
        for root in &index.roots {
            let phase = match root.phase {
                Phase::Next => "trusted, signs next",
                Phase::Signing => "signs",
                Phase::Old => "trusted still",
            };
            out += &format!("# {}: {phase} (since {})\n", root.name, date(index.since));
        }
    }
    out.extend(anchors.iter().map(|anchor| pem_of(anchor)));
    print(&out)
}
