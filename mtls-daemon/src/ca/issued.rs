//! What was issued and has not expired: so that revoking a node reaches all that it obtained.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::seconds;
use super::state::{StateDir, Turn};
use crate::identity::NodeName;
use crate::identity::ca::CaError;
use crate::identity::ca::files;

pub const FILE: &str = "issued.jsonl";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    pub serial: String,
    /// The issuer's key identifier.
    pub issuer: String,
    pub id: String,
    /// Who obtained it, if that was a node of its own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    pub not_after: u64,
}

pub fn add(turn: &Turn<'_>, issued: &Issued) -> Result<(), CaError> {
    let line = serde_json::to_string(issued).map_err(|error| CaError::Sign(error.to_string()))?;
    turn.append(FILE, &line)
}

/// Those that are still valid. A line that a crash cut off is left out.
pub fn valid(directory: &StateDir, now: SystemTime) -> Result<Vec<Issued>, CaError> {
    let Some(text) = files::read_private(&directory.path(FILE))? else { return Ok(Vec::new()) };
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Issued>(line).ok());
    Ok(lines.filter(|issued| issued.not_after > seconds(now)).collect())
}

/// Forgets what has expired.
pub fn compact(directory: &StateDir, now: SystemTime) -> Result<(), CaError> {
    let turn = directory.turn()?;
    let mut text = String::new();
    for issued in valid(directory, now)? {
        let line = serde_json::to_string(&issued);
        text += &line.map_err(|error| CaError::Sign(error.to_string()))?;
        text.push('\n');
    }
    turn.write_text(FILE, &text)
}
