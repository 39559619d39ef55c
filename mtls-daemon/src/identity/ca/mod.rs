//! What signs: a CA's certificate and key, in memory and in files. The embedded CA is one self-signed
//! root, which signs SVIDs itself; the CA server (`crate::ca`) has more of them.

mod authority;
mod directory;
pub(crate) mod files;
pub(crate) mod sealed;

use std::path::PathBuf;

pub use authority::{Authority, Signed, Subject};
pub use directory::open_or_make;

/// Why the CA cannot be opened or cannot sign. All of it is on our side: the peer has no part in it.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot {what} {}: {error}", path.display())]
    Io { what: &'static str, path: PathBuf, error: std::io::Error },
    #[error(
        "{} can be read or changed by others (mode {mode:04o}): whoever holds it can be any workload; \
         if nobody else had access so far, run `chmod {fix:04o} {}`, otherwise make a new CA",
        path.display(),
        path.display()
    )]
    Permissions { path: PathBuf, mode: u32, fix: u32 },
    #[error(
        "{} belongs to user {owner}, and this daemon runs as user {us}: run `chown {us} {}` if that \
         user may be trusted with every workload's identity",
        path.display(),
        path.display()
    )]
    Owner { path: PathBuf, owner: u32, us: u32 },
    #[error(
        "another process has held the lock {} for {seconds} s: find it with `fuser {}`",
        path.display(),
        path.display()
    )]
    Locked { path: PathBuf, seconds: u64 },
    #[error(
        "the CA certificate {} is there, but its key {} is not: put the key back, or move the \
         certificate away and restart every daemon that shares this CA, which then gets a new one",
        certificate.display(),
        key.display()
    )]
    NoKey { certificate: PathBuf, key: PathBuf },
    #[error(
        "the CA key {} is there, but its certificate {} is not, and the key is never overwritten: \
         restore the certificate from a backup, or move the key away and restart every daemon that \
         shares this CA, which then gets a new one",
        key.display(),
        certificate.display()
    )]
    NoCertificate { certificate: PathBuf, key: PathBuf },
    #[error(
        "the CA in {} cannot be used: {why}; move its files away and restart every daemon that \
         shares it, which then gets a new one",
        directory.display()
    )]
    Unusable { directory: PathBuf, why: String },
    #[error("the key-encryption file {}: {why}", path.display())]
    SealingKey { path: PathBuf, why: &'static str },
    #[error("{} cannot be used: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error(
        "the CA in {} is for the trust domain {kept}, and {asked} is asked for",
        directory.display()
    )]
    OtherTrustDomain { directory: PathBuf, kept: String, asked: String },
    #[error("{} has or would have more than {most} bytes: nothing of it is used", path.display())]
    TooLong { path: PathBuf, most: u64 },
    #[error("{id} is not this CA's to issue: it serves the trust domain {trust_domain}")]
    ForeignTrustDomain { id: String, trust_domain: String },
    #[error("{0} names a trust domain and no workload: it gets no SVID")]
    NoWorkload(String),
    #[error("an SVID's lifetime must be at least one second")]
    Lifetime,
    #[error("signing failed: {0}")]
    Sign(String),
}
