//! (to be written)

use crate::cli::Exit;
use crate::config::Config;

#[derive(Debug, thiserror::Error)]
#[error("not written yet")]
pub struct RunError;

impl RunError {
    pub fn exit(&self) -> Exit {
        Exit::Failure
    }
}

pub async fn run(_config: Config) -> Result<(), RunError> {
    Err(RunError)
}
