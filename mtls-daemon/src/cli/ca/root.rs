//! `mtls-daemon ca root`

use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use clap::{Args, Subcommand};

use super::{DirectoryArgs, KeptTrustDomainArgs, RootKeyArgs, date, failed};
use crate::ca::StateDir;
use crate::ca::roots::{self, Phase, Roots, Step, StepError};
use crate::ca::signing::pem_of;
use crate::cli::{Exit, Failed, print};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RootVerb {
    /// Print the certificates of all roots, as nodes need them for --ca-root
    Show(ShowArgs),
    /// All three steps, with the time that each needs in between
    ///
    /// It may be ended at any time: called again, it goes on from where the CA is.
    Rotate(PrepareArgs),
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
    trust_domain: KeptTrustDomainArgs,
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
            _ => Exit::Config,
        };
        Self::new(exit, error)
    }
}

pub(super) fn root(verb: RootVerb) -> Result<(), Failed> {
    let now = SystemTime::now();
    match verb {
        RootVerb::Show(args) => show(args),
        RootVerb::Rotate(args) => rotate(&args),
        RootVerb::Prepare(args) => {
            let name = prepare(&args, &args.directory.open()?)?;
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

fn prepare(args: &PrepareArgs, directory: &StateDir) -> Result<String, Failed> {
    let domain = args.trust_domain.of(directory)?;
    let sealing = args.key.sealing()?;
    let now = SystemTime::now();
    Ok(roots::prepare(directory, &domain, args.key.root_key, sealing.as_ref(), now)?)
}

/// Every step is whole by itself: whatever ends this between two of them, the next call goes on.
fn rotate(args: &PrepareArgs) -> Result<(), Failed> {
    let directory = args.directory.open()?;
    let index = || directory.read::<Roots>(roots::FILE).map_err(failed);
    match index()?.under_way() {
        Some(_) => print("a rotation is under way: it goes on\n")?,
        None => print(&format!("{} is trusted beside the old root\n", prepare(args, &directory)?))?,
    }
    while let Some(step) = index()?.under_way() {
        wait(&index)?;
        let now = SystemTime::now();
        let done = match step {
            Step::Switch => roots::switch(&directory, false, now)
                .map(|name| format!("{name} signs; the old root is still trusted\n")),
            Step::Retire => roots::retire(&directory, false, now)
                .map(|name| format!("{name} is trusted no more, and its key is removed\n")),
        };
        match done {
            Ok(said) => print(&said)?,
            // Something that lives longer was signed meanwhile.
            Err(StepError::TooEarly { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Until everybody has heard of the latest step.
fn wait(index: &impl Fn() -> Result<Roots, Failed>) -> Result<(), Failed> {
    let mut said = false;
    loop {
        let left = index()?.waits(SystemTime::now());
        if left.is_zero() {
            return Ok(());
        }
        if !said {
            print(&format!(
                "waits {} until what was signed before has expired (if this is ended, `ca root \
                 rotate` goes on)\n",
                humantime::format_duration(left)
            ))?;
            said = true;
        }
        // Not all of it at once: the clock may be set, and a host may sleep.
        std::thread::sleep(left.min(Duration::from_secs(60)));
    }
}

fn show(args: ShowArgs) -> Result<(), Failed> {
    let directory = args.directory.open()?;
    if let Some(above) = directory.read_text(roots::PLUGGED_IN).map_err(failed)? {
        let note = if args.phases { "# somebody else's, above --cacerts: trusted\n" } else { "" };
        return print(&format!("{note}{}", *above));
    }
    let anchors = roots::anchors(&directory).map_err(failed)?;
    if anchors.is_empty() {
        let directory = args.directory.dir.display();
        let error = anyhow!("there is no root in {directory} yet: `ca run --dir` makes the first");
        return Err(error.into());
    }
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
