//! The trust domain that a directory's CA signs for: kept beside its keys, so that nobody has to say
//! it twice and a verb cannot mean another than the server.

use super::state::StateDir;
use crate::identity::TrustDomain;
use crate::identity::ca::{CaError, files};

pub const FILE: &str = "trust-domain";

/// None: no CA that keeps it has run with this directory yet.
pub fn kept(directory: &StateDir) -> Result<Option<TrustDomain>, CaError> {
    let path = directory.path(FILE);
    let Some(text) = files::read_private(&path)? else { return Ok(None) };
    let domain = TrustDomain::parse(text.trim_end());
    domain.map(Some).map_err(|error| CaError::File { path, why: error.to_string() })
}

/// Writes it down the first time; from then on it is the only one.
pub fn keep(directory: &StateDir, ours: &TrustDomain) -> Result<(), CaError> {
    let turn = directory.turn()?;
    match kept(directory)? {
        Some(kept) => same(directory, &kept, ours),
        None => turn.write_text(FILE, &format!("{ours}\n")),
    }
}

/// Whether `asked` is the one that is kept.
pub fn same(directory: &StateDir, kept: &TrustDomain, asked: &TrustDomain) -> Result<(), CaError> {
    if kept == asked {
        return Ok(());
    }
    let (kept, asked) = (kept.to_string(), asked.to_string());
    Err(CaError::OtherTrustDomain { directory: directory.path(""), kept, asked })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_trust_domain_for_good() {
        let place = tempfile::tempdir().unwrap();
        let directory = StateDir::open(&place.path().join("ca")).unwrap();
        let [prod, other] =
            ["prod.example", "cluster.local"].map(|name| TrustDomain::parse(name).unwrap());
        assert_eq!(kept(&directory).unwrap(), None, "one from before it was kept");
        keep(&directory, &prod).unwrap();
        keep(&directory, &prod).unwrap();
        assert_eq!(kept(&directory).unwrap(), Some(prod));
        let error = keep(&directory, &other).unwrap_err().to_string();
        assert!(error.contains("prod.example") && error.contains("cluster.local"), "{error}");
        std::fs::write(directory.path(FILE), "A B\n").unwrap();
        assert!(matches!(kept(&directory), Err(CaError::File { .. })), "never a guess");
    }
}
