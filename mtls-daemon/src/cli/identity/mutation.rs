//! Damage that a row wants done to a file before it is read.

use anyhow::{Context, Result, bail, ensure};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Understands three sentences, each about a DER file: `concatenate the file with itself N times`,
/// `append bytes XX XX …`, and `fill the OCTET STRING of extension OID with FF`, the last one
/// optionally `in the Nth certificate`. `as above` repeats the last one, in another certificate or
/// with the extension that the row's name speaks of.
#[derive(Default)]
pub(super) struct Mutations {
    last: Option<Mutation>,
}

#[derive(Clone)]
enum Mutation {
    Repeat(usize),
    Append(Vec<u8>),
    /// Of the certificate at this place: the content of this extension.
    Fill {
        certificate: usize,
        oid: String,
    },
}

/// A typing mistake should not take all of the memory.
const MOST: usize = 1000;

const EXTENSIONS: [(&str, &str); 4] = [
    ("BasicConstraints", "2.5.29.19"),
    ("ExtendedKeyUsage", "2.5.29.37"),
    ("KeyUsage", "2.5.29.15"),
    ("SubjectAlternativeName", "2.5.29.17"),
];

impl Mutations {
    pub(super) fn apply(&mut self, text: &str, name: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let mutation = self.parse(text, name).with_context(|| format!("the mutation {text:?}"))?;
        self.last = Some(mutation.clone());
        Ok(match mutation {
            Mutation::Repeat(times) => bytes.repeat(times),
            Mutation::Append(more) => [bytes, more].concat(),
            Mutation::Fill { certificate, oid } => fill(bytes, certificate, &oid)?,
        })
    }

    fn parse(&self, text: &str, name: &str) -> Result<Mutation> {
        if let Some(rest) = text.strip_prefix("concatenate the file with itself ") {
            let times = rest.strip_suffix(" times").context("it does not say how many times")?;
            let times = times.parse()?;
            ensure!(times <= MOST, "that is more than {MOST}");
            return Ok(Mutation::Repeat(times));
        }
        if let Some(bytes) = text.strip_prefix("append bytes ") {
            let bytes = bytes.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
            return Ok(Mutation::Append(bytes.collect::<Result<_, _>>()?));
        }
        let certificate = which(text)?;
        if let Some(rest) = text.strip_prefix("fill the OCTET STRING of extension ") {
            let (oid, rest) = rest.split_once(' ').context("it ends after the extension")?;
            ensure!(rest.starts_with("with FF"), "only FF is known");
            return Ok(Mutation::Fill {
                certificate: certificate.unwrap_or(0),
                oid: oid.to_owned(),
            });
        }
        if text.starts_with("as above") {
            let Some(mut last) = self.last.clone() else { bail!("nothing is above it") };
            if let Mutation::Fill { certificate: place, oid } = &mut last {
                *place = certificate.unwrap_or(*place);
                if let Some((_, named)) = EXTENSIONS.iter().find(|(word, _)| name.contains(word)) {
                    *oid = (*named).to_owned();
                }
            }
            return Ok(last);
        }
        bail!("it is none that is known")
    }
}

/// `…, in the 2nd certificate only` counts from one.
fn which(text: &str) -> Result<Option<usize>> {
    let Some((_, rest)) = text.split_once("in the ") else { return Ok(None) };
    let number = rest.split(' ').next().unwrap_or_default();
    if number == "leaf" {
        return Ok(Some(0));
    }
    let number: usize = number.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse()?;
    Ok(Some(number.checked_sub(1).context("certificates are counted from one")?))
}

fn fill(mut bytes: Vec<u8>, certificate: usize, oid: &str) -> Result<Vec<u8>> {
    let mut rest = &bytes[..];
    for _ in 0..certificate {
        rest = X509Certificate::from_der(rest)?.0;
    }
    let (_, parsed) = X509Certificate::from_der(rest)?;
    let found = parsed.extensions().iter().find(|it| it.oid.to_id_string() == oid);
    let value = found.with_context(|| format!("the certificate has no extension {oid}"))?.value;
    // The value is a part of what was parsed.
    let begin = value.as_ptr().addr() - bytes.as_ptr().addr();
    let end = begin + value.len();
    bytes[begin..end].fill(0xff);
    Ok(bytes)
}
