//! Whose the CA's files are: the service's user, whoever types the verb.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, anyhow};
use nix::unistd::{Gid, Uid, User, geteuid, setgid, setgroups, setuid};

use crate::cli::{Exit, Failed};

/// Goes on as the owner of `directory`, so that what is written stays the service's: root may, for
/// good; whoever else is not the owner is told whom to be. Before anything else is opened.
pub(super) fn become_owner(directory: &Path) -> Result<(), Failed> {
    let facts = std::fs::metadata(directory)
        .with_context(|| format!("cannot look at {}", directory.display()))?;
    let (us, owner) = (geteuid(), Uid::from_raw(facts.uid()));
    if us == owner {
        return Ok(());
    }
    if !us.is_root() {
        return Err(not_ours(directory, owner, us));
    }
    // Groups first: whoever is no longer root cannot leave them.
    let group = Gid::from_raw(facts.gid());
    setgroups(&[group])
        .and_then(|()| setgid(group))
        .and_then(|()| setuid(owner))
        .with_context(|| format!("cannot become user {owner}, who owns {}", directory.display()))?;
    // The kernel forgot it with the change.
    crate::cli::run::keep_keys_out_of_core_files()
}

/// `ca run` changes no user: its unit does.
pub(super) fn must_be_owner(directory: &Path) -> Result<(), Failed> {
    let Ok(facts) = std::fs::metadata(directory) else { return Ok(()) };
    let (us, owner) = (geteuid(), Uid::from_raw(facts.uid()));
    if us == owner { Ok(()) } else { Err(not_ours(directory, owner, us)) }
}

fn not_ours(directory: &Path, owner: Uid, us: Uid) -> Failed {
    let known = User::from_uid(owner).ok().flatten();
    let how = match known {
        Some(user) => format!("run it as user {} (`runuser -u {} -- …`)", user.name, user.name),
        None => format!("run it as user {owner} (`setpriv --reuid={owner} --clear-groups …`)"),
    };
    let directory = directory.display();
    Failed::new(Exit::Config, anyhow!("{directory} belongs to user {owner}, not to {us}: {how}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_not_the_owner_is_told_whom_to_be() {
        let directory = Path::new("/var/lib/mtls-ca");
        let said = |owner| not_ours(directory, Uid::from_raw(owner), Uid::from_raw(1)).to_string();
        assert!(said(0).contains("run it as user root (`runuser -u root -- …`)"), "{}", said(0));
        let nobody = said(4_000_001);
        assert!(nobody.contains("run it as user 4000001 (`setpriv --reuid=4000001"), "{nobody}");
        assert!(!nobody.contains("chown"), "{nobody}");
    }
}
