//! Join tokens: how a machine that nobody vouches for yet gets its first certificate, once.
//!
//! A token is `mtls-join.<id>.<secret>`. The CA keeps the hash of the secret alone.
//!
//! An answer may be lost on its way, and the token would be spent for nothing: so for a while the key
//! that it was used for, which its holder shows to have, gets another certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::seconds;
use super::state::{StateDir, Turn};
use crate::identity::ca::CaError;
use crate::identity::{NodeName, SpiffeId};
use crate::tls::provider::random_bytes;

pub const FILE: &str = "tokens.json";
pub const PREFIX: &str = "mtls-join.";

/// Wrong secrets for one token, after which it is worth nothing. A secret has 256 bits: this guards
/// the log, not the secret.
pub const ATTEMPTS: u32 = 5;

/// How long an answer is given again, to the same key.
const AGAIN: u64 = 15 * 60;

/// How often: more than a node asks in that time.
const ANSWERS: usize = 21;

/// Used up and expired tokens are listed for so long.
const REMEMBERED: u64 = 7 * 24 * 3600;

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tokens(BTreeMap<String, Token>);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    sha256: String,
    pub node: NodeName,
    pub identities: BTreeSet<String>,
    pub created: u64,
    pub expires: u64,
    #[serde(default)]
    pub failed_attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// SHA-256 of the public key that it was used for, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Of the certificates that it brought.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    serials: Vec<String>,
}

/// What a token is to be used for.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    /// The public key (SubjectPublicKeyInfo, DER), whose private one the caller has.
    pub spki: &'a [u8],
    /// Of the certificate.
    pub serial: &'a str,
}

/// What using a token up came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsedUp {
    First,
    /// It was used for this key before: these are the certificates that it brought.
    Again {
        serials: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the join token has no such form")]
    Form,
    #[error("there is no join token {0} (or no more)")]
    Unknown(String),
    #[error("the secret of join token {0} is wrong")]
    Secret(String),
    #[error("join token {0} was tried with {ATTEMPTS} wrong secrets and is void")]
    Void(String),
    #[error("join token {0} has expired")]
    Expired(String),
    #[error("join token {0} was used before")]
    Used(String),
}

impl Token {
    /// As `ca token list` shows it.
    pub fn state(&self, now: SystemTime) -> &'static str {
        if self.used.is_some() {
            return "used";
        }
        match self.usable("", now) {
            Ok(()) => "valid",
            Err(TokenError::Void(_)) => "void",
            Err(_) => "expired",
        }
    }

    /// Whether it is good for somebody.
    fn usable(&self, id: &str, now: SystemTime) -> Result<(), TokenError> {
        let (id, now) = (id.to_owned(), seconds(now));
        if let Some(used) = self.used {
            let young = now.abs_diff(used) < AGAIN && self.serials.len() < ANSWERS;
            if !young || self.key.is_none() {
                return Err(TokenError::Used(id));
            }
        } else if now >= self.expires {
            return Err(TokenError::Expired(id));
        }
        if self.failed_attempts >= ATTEMPTS { Err(TokenError::Void(id)) } else { Ok(()) }
    }
}

impl Tokens {
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Token)> {
        self.0.iter().map(|(id, token)| (id.as_str(), token))
    }
}

/// Makes a token; the text is nowhere else.
pub fn create(
    directory: &StateDir,
    node: NodeName,
    identities: impl IntoIterator<Item = SpiffeId>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<(String, Zeroizing<String>), CaError> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let id = hex(&random_bytes::<6>().map_err(CaError::Sign)?);
    let secret = Zeroizing::new(hex(&random_bytes::<32>().map_err(CaError::Sign)?));
    let token = Token {
        sha256: hash(secret.as_bytes()),
        node,
        identities: identities.into_iter().map(|id| id.to_string()).collect(),
        created: seconds(now),
        expires: seconds(now + lifetime),
        failed_attempts: 0,
        used: None,
        key: None,
        serials: Vec::new(),
    };
    let turn = directory.turn()?;
    let mut tokens: Tokens = turn.read(FILE)?;
    tokens.0.retain(|_, token| token.expires.saturating_add(REMEMBERED) > seconds(now));
    tokens.0.insert(id.clone(), token);
    turn.write(FILE, &tokens)?;
    Ok((id.clone(), format!("{PREFIX}{id}.{}", *secret).into()))
}

/// Takes a token back. False: there is none of that name.
pub fn revoke(directory: &StateDir, id: &str) -> Result<bool, CaError> {
    let turn = directory.turn()?;
    let mut tokens: Tokens = turn.read(FILE)?;
    let found = tokens.0.remove(id).is_some();
    if found {
        turn.write(FILE, &tokens)?;
    }
    Ok(found)
}

/// Its name and its secret.
pub fn parse(text: &str) -> Result<(&str, &str), TokenError> {
    let rest = text.strip_prefix(PREFIX).ok_or(TokenError::Form)?;
    let (id, secret) = rest.split_once('.').ok_or(TokenError::Form)?;
    // Ours have 12 hex digits; anything longer has no business in a log.
    if id.is_empty() || id.len() > 32 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(TokenError::Form);
    }
    Ok((id, secret))
}

/// Whether the text is a token that may be used now, be it by the key alone that used it before; counts
/// a wrong secret. Its name and what it is for.
pub fn check(
    directory: &StateDir,
    text: &str,
    now: SystemTime,
) -> Result<Result<(String, Token), TokenError>, CaError> {
    let (id, secret) = match parse(text) {
        Ok(parts) => parts,
        Err(error) => return Ok(Err(error)),
    };
    // Whoever invents names makes nobody wait: the lock is for those that are there.
    if !directory.read::<Tokens>(FILE)?.0.contains_key(id) {
        return Ok(Err(TokenError::Unknown(id.to_owned())));
    }
    let turn = directory.turn()?;
    let mut tokens: Tokens = turn.read(FILE)?;
    let Some(token) = tokens.0.get_mut(id) else {
        return Ok(Err(TokenError::Unknown(id.to_owned())));
    };
    if let Err(error) = token.usable(id, now) {
        return Ok(Err(error));
    }
    let given = hash(secret);
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(
        given.as_bytes(),
        token.sha256.as_bytes(),
    );
    if same.is_ok() {
        return Ok(Ok((id.to_owned(), token.clone())));
    }
    token.failed_attempts += 1;
    turn.write(FILE, &tokens)?;
    Ok(Err(TokenError::Secret(id.to_owned())))
}

/// Uses a token up that [`check`] found good: only one of several callers succeeds, and may come again.
/// `first`: what has to be written before the token is spent.
pub fn use_up(
    turn: &Turn<'_>,
    id: &str,
    used: Use<'_>,
    now: SystemTime,
    first: impl FnOnce(&Token) -> Result<(), CaError>,
) -> Result<Result<UsedUp, TokenError>, CaError> {
    let mut tokens: Tokens = turn.read(FILE)?;
    let Some(token) = tokens.0.get_mut(id) else {
        return Ok(Err(TokenError::Unknown(id.to_owned())));
    };
    if let Err(error) = token.usable(id, now) {
        return Ok(Err(error));
    }
    let key = hash(used.spki);
    let before = token.serials.clone();
    token.serials.push(used.serial.to_owned());
    let used_up = match &token.key {
        Some(known) if *known == key => UsedUp::Again { serials: before },
        Some(_) => return Ok(Err(TokenError::Used(id.to_owned()))),
        None => {
            first(token)?;
            (token.used, token.key) = (Some(seconds(now)), Some(key));
            UsedUp::First
        }
    };
    turn.write(FILE, &tokens)?;
    Ok(Ok(used_up))
}

fn hash(secret: impl AsRef<[u8]>) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
