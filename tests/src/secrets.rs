//! Private keys where they are looked for: in a process' memory, and in what it prints.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::openssl;

/// So many bytes of a key in a row are no accident.
const ENOUGH: usize = 16;
/// Nor are so many in a text, where each is written as two characters or more. Of twice as many in a row,
/// one piece is whole.
const WRITTEN: usize = 8;

/// Pieces of a key, each called by what it is a piece of.
pub type Needles = Vec<(&'static str, Vec<u8>)>;

/// The number that a P-256 key is.
type Scalar = [u8; 32];

/// The key in every form that it could lie around in.
///
/// # Errors
/// When it is no P-256 key in PEM.
pub fn needles(key: &Path) -> Result<Needles> {
    let pem = fs::read_to_string(key)?;
    let der = openssl::pkcs8_der(key)?;
    let at = place(&der)?;
    let scalar = &der[at..at + 32];
    // Arithmetic has the number's words the other way around.
    let reversed: Vec<u8> = scalar.iter().rev().copied().collect();
    let mut needles: Needles = Vec::new();
    for (name, bytes) in [("the scalar", scalar), ("the scalar, reversed", &reversed)] {
        needles.extend(bytes.chunks_exact(ENOUGH).map(|piece| (name, piece.to_vec())));
    }
    // Around the scalar: that alone tells one key from another.
    needles.push(("the PKCS#8", der[at - 2..at - 2 + ENOUGH].to_vec()));
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    // The second line, which the end of the scalar is in: so it is with line ends and without.
    let own = body.as_bytes().get(64..64 + 32).context("a longer key")?;
    needles.extend(own.chunks_exact(ENOUGH).map(|piece| ("the PEM", piece.to_vec())));
    Ok(needles)
}

/// Where the scalar is in a PKCS#8: after ECPrivateKey's version 1, an OCTET STRING of 32 bytes.
fn place(der: &[u8]) -> Result<usize> {
    let at = der.windows(5).position(|it| it == [0x02, 0x01, 0x01, 0x04, 0x20]);
    Ok(at.context("a P-256 key")? + 5)
}

/// Ways in which a text could show the key, without blanks and in small letters.
///
/// # Errors
/// As [`needles`].
pub fn spellings(key: &Path) -> Result<Vec<String>> {
    let pem = fs::read_to_string(key)?;
    let der = openssl::pkcs8_der(key)?;
    let at = place(&der)?;
    let body = pem.lines().filter(|line| !line.starts_with("-----"));
    // The first line is mostly what all keys have in common.
    let mut spellings: Vec<String> = body.skip(1).map(str::to_lowercase).collect();
    spellings.truncate(1);
    for piece in der[at..at + 32].chunks_exact(WRITTEN) {
        let all = |each: fn(&u8) -> String, between| {
            piece.iter().map(each).collect::<Vec<_>>().join(between)
        };
        spellings.push(all(|byte| byte.to_string(), ","));
        for between in ["", ":", ","] {
            spellings.push(all(|byte| format!("{byte:02x}"), between));
        }
    }
    Ok(spellings)
}

/// The first of `spellings` that is in `text`, whatever its blanks, line ends and case.
pub fn spelled<'s>(text: &str, spellings: &'s [String]) -> Option<&'s str> {
    let text: String = text.split_whitespace().collect::<String>().to_lowercase();
    spellings.iter().map(String::as_str).find(|spelling| text.contains(spelling))
}

/// What of `needles` is in the memory of a process, and in which mapping.
///
/// # Errors
/// When it cannot be read: one must be root.
pub fn found(pid: u32, needles: &Needles) -> Result<Vec<String>> {
    let mut begins: Vec<Needles> = vec![Needles::new(); 256];
    for (name, needle) in needles {
        begins[usize::from(needle[0])].push((name, needle.clone()));
    }
    let mut found = Vec::new();
    each_mapping(pid, |line, _, bytes| {
        // One pass: there is much memory, and few bytes begin a needle.
        for (at, byte) in bytes.iter().enumerate() {
            for (name, needle) in &begins[usize::from(*byte)] {
                if bytes[at..].starts_with(needle) {
                    found.push(format!("{name} at +{at:#x} of {line}"));
                }
            }
        }
    })?;
    Ok(found)
}

/// The numbers of all P-256 keys that a process has ready for use, whoever made them.
///
/// AWS-LC keeps such a key as a BIGNUM (pointer, width, room, sign) whose pointer is to the words behind
/// it: nothing else in memory points to its own end so. If it is laid out in another way some day, nothing
/// is found, and whoever asks notices.
///
/// # Errors
/// As [`found`].
pub fn keys_in_use(pid: u32) -> Result<Vec<Scalar>> {
    const HEAD: usize = 24;
    /// Four words wide, with room for as many, and not negative.
    const P256: [u8; 12] = [4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
    let mut keys = Vec::new();
    each_mapping(pid, |_, from, bytes| {
        for at in (0..bytes.len().saturating_sub(HEAD + 32)).step_by(8) {
            let own = (from + (at + HEAD) as u64).to_ne_bytes();
            if bytes[at..at + 8] == own && bytes[at + 8..at + 20] == P256 {
                let mut scalar: Scalar = bytes[at + HEAD..at + HEAD + 32].try_into().expect("32");
                scalar.reverse();
                if scalar != [0; 32] && !keys.contains(&scalar) {
                    keys.push(scalar);
                }
            }
        }
    })?;
    Ok(keys)
}

/// Line of the map, first address, and bytes of everything that the process can write to.
fn each_mapping(pid: u32, mut look: impl FnMut(&str, u64, &[u8])) -> Result<()> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).context("run as root")?;
    let mut read = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) =
            line.split(' ').next().and_then(|it| it.split_once('-')).context("maps")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        let mut bytes = vec![0; usize::try_from(to - from)?];
        // A mapping can go while it is read.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        read += bytes.len();
        look(line, from, &bytes);
    }
    ensure!(read > 1 << 20, "only {read} bytes of memory could be read");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_however_it_is_spelled() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let key = openssl::self_signed(directory.path(), "it")?.key;
        let der = openssl::pkcs8_der(&key)?;
        let at = place(&der)?;
        let scalar = &der[at..at + 32];
        let spellings = spellings(&key)?;
        let hex =
            |between| scalar.iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(between);
        for text in [
            fs::read_to_string(&key)?,
            format!("{:?}", &scalar[3..19]),
            format!("{scalar:#?}"),
            format!("{scalar:02x?}"),
            hex(""),
            hex(":"),
            hex(" "),
        ] {
            ensure!(spelled(&text, &spellings).is_some(), "{text}");
        }
        let other = fs::read_to_string(openssl::self_signed(directory.path(), "other")?.key)?;
        ensure!(spelled(&other, &spellings).is_none(), "another key");
        Ok(())
    }

    #[test]
    fn a_key_made_from_its_number_is_that_key() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let key = openssl::self_signed(directory.path(), "it")?.key;
        let der = openssl::pkcs8_der(&key)?;
        let at = place(&der)?;
        let scalar: Scalar = der[at..at + 32].try_into()?;
        let made = openssl::p256_key(directory.path(), "made", &scalar)?;
        ensure!(fs::read_to_string(made)? == fs::read_to_string(key)?);
        Ok(())
    }
}
