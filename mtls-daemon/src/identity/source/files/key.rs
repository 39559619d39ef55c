//! A private key out of PEM, with nothing of it left in memory but the key itself.
//!
//! Libraries collect base64 in buffers that grow and are not wiped; here every buffer has its final
//! size from the start and is wiped.

use data_encoding::BASE64;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer};
use x509_parser::asn1_rs::Any;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// The first private key in `text`, which is to be `leaf`'s. No error repeats what was read.
pub(super) fn from_pem(
    text: &[u8],
    leaf: &CertificateDer<'_>,
) -> Result<PrivateKeyDer<'static>, String> {
    let mut rest = text;
    while let Some((label, body, after)) = block(rest)? {
        match label {
            b"PRIVATE KEY" => {
                return Ok(PrivatePkcs8KeyDer::from(take(decode(body)?)).into());
            }
            b"RSA PRIVATE KEY" => {
                return Ok(PrivatePkcs1KeyDer::from(take(decode(body)?)).into());
            }
            b"EC PRIVATE KEY" => {
                let key = decode(body)?;
                return Ok(PrivatePkcs8KeyDer::from(take(pkcs8(&key, leaf)?)).into());
            }
            b"ENCRYPTED PRIVATE KEY" => return Err(ENCRYPTED.to_owned()),
            _ => rest = after,
        }
    }
    Err("there is no private key in it (PEM: PKCS#8, PKCS#1 or SEC 1)".to_owned())
}

const ENCRYPTED: &str =
    "the key is encrypted: write it without a passphrase, readable by root alone";
const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

type Block<'t> = (&'t [u8], &'t [u8], &'t [u8]);

/// Label and body of the next block, and what follows it.
fn block(text: &[u8]) -> Result<Option<Block<'_>>, String> {
    let Some(begin) = find(text, BEGIN) else { return Ok(None) };
    let text = &text[begin + BEGIN.len()..];
    let cut = || "it is no well-formed PEM: still being written?".to_owned();
    let label = &text[..find(text, DASHES).ok_or_else(cut)?];
    let text = &text[label.len() + DASHES.len()..];
    let end = find(text, END).ok_or_else(cut)?;
    let (body, text) = (&text[..end], &text[end + END.len()..]);
    let after =
        text.strip_prefix(label).and_then(|text| text.strip_prefix(DASHES)).ok_or_else(cut)?;
    Ok(Some((label, body, after)))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn decode(body: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    // OpenSSL's old encryption has headers.
    if body.contains(&b':') {
        return Err(ENCRYPTED.to_owned());
    }
    let mut digits = Zeroizing::new(Vec::with_capacity(body.len()));
    digits.extend(body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()));
    let malformed = || "its base64 is malformed: still being written?".to_owned();
    let length = BASE64.decode_len(digits.len()).map_err(|_| malformed())?;
    let mut der = Zeroizing::new(vec![0; length]);
    let length = BASE64.decode_mut(&digits, &mut der).map_err(|_| malformed())?;
    der.truncate(length);
    Ok(der)
}

/// The buffer itself, for an owner who wipes it.
fn take(mut secret: Zeroizing<Vec<u8>>) -> Vec<u8> {
    std::mem::take(&mut *secret)
}

/// A SEC 1 key does not have to say its curve; its certificate does.
fn pkcs8(sec1: &[u8], leaf: &CertificateDer<'_>) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = || "its certificate's public key cannot be read".to_owned();
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| unreadable())?;
    let (_, info) = Any::from_der(leaf.public_key().raw).map_err(|_| unreadable())?;
    let (key, _) = Any::from_der(info.data).map_err(|_| unreadable())?;
    let algorithm = &info.data[..info.data.len() - key.len()];
    let version: &[u8] = &[0x02, 0x01, 0x00];
    let inner = version.len() + algorithm.len() + header(0x04, sec1.len()).len() + sec1.len();
    let outer = header(0x30, inner);
    let mut der = Zeroizing::new(Vec::with_capacity(outer.len() + inner));
    for part in [&outer[..], version, algorithm, &header(0x04, sec1.len()), sec1] {
        der.extend_from_slice(part);
    }
    Ok(der)
}

/// Tag and length in DER.
fn header(tag: u8, length: usize) -> Vec<u8> {
    match length {
        0..=0x7f => vec![tag, length as u8],
        0x80..=0xff => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    }
}
