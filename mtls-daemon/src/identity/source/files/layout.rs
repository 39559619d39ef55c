//! Which files belong together, and whether they changed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::read;
use crate::identity::SpiffeId;
use crate::identity::encoding::certificates_from_pem;
use crate::tls::svid::parse_svid;

/// `DIR`, `DIR/<ns>`, `DIR/<ns>/<sa>`.
const DEPTH: usize = 3;

/// Names of files of roots: Istio's, a Kubernetes secret's, spiffe-helper's, anybody's.
pub(super) const BUNDLES: [&str; 5] =
    ["root-cert.pem", "ca.crt", "svid_bundle.pem", "bundle.pem", "ca.pem"];
/// Certificates whose key is not named after them.
const PAIRS: [(&str, &str); 3] =
    [("cert-chain.pem", "key.pem"), ("cert.pem", "key.pem"), ("svid.pem", "svid_key.pem")];

/// The files of one SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub bundle: Option<PathBuf>,
    /// Stands for what the files hold, the key's file by what `stat` says of it.
    pub fingerprint: [u8; 32],
}

/// A certificate that nothing can be made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    pub file: PathBuf,
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.why)
    }
}

#[derive(Debug, Default)]
pub(super) struct Scan {
    pub sets: BTreeMap<SpiffeId, Set>,
    pub problems: Vec<Problem>,
}

/// Every certificate below `directory`, by its own name and not its file's.
pub(super) fn scan(directory: &Path) -> Scan {
    let mut scan = Scan::default();
    for place in walk(directory) {
        for certificate in place.files.iter().filter(|file| is_certificate(file)) {
            let key = key_of(certificate, &place.files);
            match identify(certificate, &key, place.bundle.as_deref()) {
                Ok((id, set)) => {
                    if let Some(first) = scan.sets.get(&id) {
                        let first = first.certificate.display();
                        let why = format!("{id} is also in {first}, which is used: remove one");
                        scan.problems.push(Problem { file: certificate.clone(), why });
                    } else {
                        scan.sets.insert(id, set);
                    }
                }
                Err(why) => scan.problems.push(Problem { file: certificate.clone(), why }),
            }
        }
    }
    scan
}

fn identify(
    certificate: &Path,
    key: &Path,
    bundle: Option<&Path>,
) -> Result<(SpiffeId, Set), String> {
    let text = read::secret(certificate)?;
    let chain = certificates_from_pem(&text.bytes).map_err(|why| why.to_string())?;
    let facts = parse_svid(&chain).map_err(|why| why.to_string())?;
    let mut hash = Sha256::new();
    let roots = bundle.and_then(|bundle| read::secret(bundle).ok());
    let roots: &[u8] = roots.as_ref().map_or(&[], |roots| &roots.bytes);
    for part in [&text.bytes[..], roots, format!("{:?}", file_stamp(key)).as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let set = Set {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        bundle: bundle.map(Path::to_owned),
        fingerprint: hash.finalize().into(),
    };
    Ok((facts.id, set))
}

/// What `stat` says of every file and directory: cheap to take, differs after any change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    files: Vec<(PathBuf, FileStamp)>,
    /// To be watched: where the names are, and where links lead.
    pub directories: Vec<PathBuf>,
}

/// Device, inode, size, mode, and the times of change to the content and to the inode.
type FileStamp = Option<(u64, u64, u64, u32, (i64, i64), (i64, i64))>;

impl Stamp {
    /// Something changed less than `age` ago, by the clock that stamps files.
    pub fn is_younger_than(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.files.iter().filter_map(|(_, stamp)| *stamp).any(|(.., changed)| {
            let seconds = u64::try_from(changed.0).unwrap_or_default();
            let nanoseconds = u32::try_from(changed.1).unwrap_or_default();
            now.abs_diff(Duration::new(seconds, nanoseconds)) < age
        })
    }
}

pub(super) fn stamp(directory: &Path) -> Stamp {
    let mut stamp = Stamp::default();
    for place in walk(directory) {
        for file in place.files {
            let real = fs::canonicalize(&file).ok();
            if let Some(parent) = real.as_deref().and_then(Path::parent) {
                stamp.directories.push(parent.to_owned());
            }
            let facts = file_stamp(&file);
            stamp.files.push((file, facts));
        }
        stamp.directories.push(place.directory);
    }
    stamp.directories.sort();
    stamp.directories.dedup();
    stamp
}

fn file_stamp(path: &Path) -> FileStamp {
    let meta = fs::metadata(path).ok()?;
    let times = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    Some((meta.dev(), meta.ino(), meta.size(), meta.mode(), times.0, times.1))
}

struct Place {
    directory: PathBuf,
    /// By name; symbolic links are followed.
    files: Vec<PathBuf>,
    /// Here or above.
    bundle: Option<PathBuf>,
}

fn walk(directory: &Path) -> Vec<Place> {
    let mut places = Vec::new();
    descend(directory, None, DEPTH, &mut places);
    places
}

fn descend(directory: &Path, above: Option<&Path>, depth: usize, places: &mut Vec<Place>) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry.path();
        // Dotted names are a mounted secret's own bookkeeping and editors' temporary files.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => directories.push(path),
            _ => files.push(path),
        }
    }
    files.sort();
    directories.sort();
    let own = BUNDLES.iter().map(|name| directory.join(name)).find(|path| files.contains(path));
    let bundle = own.or_else(|| above.map(Path::to_owned));
    places.push(Place { directory: directory.to_owned(), files, bundle: bundle.clone() });
    if depth > 1 {
        for below in directories {
            descend(&below, bundle.as_deref(), depth - 1, places);
        }
    }
}

/// By its name.
fn is_certificate(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (stem, extension) = name.rsplit_once('.').unwrap_or_default();
    matches!(extension, "pem" | "crt")
        && !BUNDLES.contains(&name)
        && !PAIRS.iter().any(|(_, key)| *key == name)
        && !stem.ends_with("-key")
}

/// Where the key of a certificate is, or should be.
fn key_of(certificate: &Path, files: &[PathBuf]) -> PathBuf {
    let name = certificate.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let paired = PAIRS.iter().filter(|(of, _)| *of == name).map(|(_, key)| (*key).to_owned());
    let named = [format!("{stem}.key"), format!("{stem}-key.pem")];
    let mut candidates = paired.chain(named).map(|name| certificate.with_file_name(name));
    let first = candidates.next().unwrap_or_else(|| certificate.with_extension("key"));
    if files.contains(&first) {
        return first;
    }
    candidates.find(|path| files.contains(path)).unwrap_or(first)
}
