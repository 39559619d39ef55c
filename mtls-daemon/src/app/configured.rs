//! Which configuration is in force, and how reading the newest one went.

use std::time::SystemTime;

use super::report;
use crate::admin::status::RefusedStatus;
use crate::policy::error::ConfigError;
use crate::source::files::LoadError;

/// What the files say, and how reading them went.
#[derive(Debug, Clone)]
pub struct ConfigState {
    /// 0: none.
    pub generation: u64,
    pub loaded_at: SystemTime,
    pub last_error: Option<String>,
    pub refused: Vec<RefusedStatus>,
    pub warnings: Vec<String>,
}

impl ConfigState {
    /// A configuration that was read, some of whose objects may be refused.
    pub fn read(generation: u64, errors: &[ConfigError], warnings: Vec<String>) -> Self {
        Self {
            generation,
            loaded_at: SystemTime::now(),
            last_error: (!errors.is_empty()).then(|| LoadError(errors.to_vec()).to_string()),
            refused: report::refused(errors),
            warnings,
        }
    }
}

/// A configuration that is being applied.
#[derive(Debug)]
struct Coming {
    state: ConfigState,
    /// It is in force in part, and tried again every second.
    failed: bool,
}

/// The configuration in force, and the one that follows it.
#[derive(Debug)]
pub struct Configured {
    state: ConfigState,
    coming: Option<Coming>,
}

impl Configured {
    /// Nothing was read yet.
    pub fn nothing() -> Self {
        Self { state: ConfigState::read(0, &[], Vec::new()), coming: None }
    }

    pub fn state(&self) -> &ConfigState {
        &self.state
    }

    /// `state` is being applied from now on.
    pub fn begin(&mut self, state: ConfigState) {
        self.coming = Some(Coming { state, failed: false });
    }

    /// What was begun is in force.
    pub fn succeeded(&mut self) {
        if let Some(coming) = self.coming.take() {
            self.state = coming.state;
        }
    }

    /// What was begun is in force in part: see [`Self::succeeded_late`].
    pub fn failed(&mut self, error: String) {
        self.state.last_error = Some(error);
        if let Some(coming) = &mut self.coming {
            coming.failed = true;
        }
    }

    /// Nothing is left to apply: what had failed has come in force meanwhile. Its generation, if there
    /// was any.
    pub fn succeeded_late(&mut self) -> Option<u64> {
        let late = self.coming.take_if(|coming| coming.failed)?;
        self.state = late.state;
        Some(self.state.generation)
    }

    /// A newer configuration was read, and nothing of it can be used.
    pub fn refused(&mut self, error: &LoadError) {
        let coming = self.coming.iter_mut().map(|coming| &mut coming.state);
        for state in coming.chain([&mut self.state]) {
            state.last_error = Some(error.to_string());
            state.refused = report::all_refused(&error.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::error::{Code, Origin};

    fn generation(number: u64) -> ConfigState {
        ConfigState::read(number, &[], Vec::new())
    }

    fn shown(configured: &Configured) -> (u64, Option<&str>) {
        let state = configured.state();
        (state.generation, state.last_error.as_deref())
    }

    #[test]
    fn what_failed_half_way_is_shown_once_it_is_in_force() {
        let mut configured = Configured::nothing();
        configured.begin(generation(1));
        configured.succeeded();
        assert_eq!(shown(&configured), (1, None));
        configured.begin(generation(2));
        // Somebody looks while it is being applied: nothing was late.
        assert_eq!(configured.succeeded_late(), None);
        configured.failed("a table".to_owned());
        assert_eq!(shown(&configured), (1, Some("a table")));
        assert_eq!(configured.succeeded_late(), Some(2));
        assert_eq!(shown(&configured), (2, None));
        assert_eq!(configured.succeeded_late(), None);
    }

    #[test]
    fn a_newer_one_takes_the_place_of_what_failed() {
        let mut configured = Configured::nothing();
        configured.begin(generation(2));
        configured.failed("a table".to_owned());
        configured.begin(generation(3));
        assert_eq!(configured.succeeded_late(), None);
        configured.succeeded();
        assert_eq!(shown(&configured), (3, None));
    }

    #[test]
    fn what_is_wrong_in_a_newer_one_stays_said_when_an_older_one_comes_in_force() {
        let mut configured = Configured::nothing();
        configured.begin(generation(2));
        configured.failed("a table".to_owned());
        let origin = Origin { file: "a.yaml".into(), line: 1, object: "".into() };
        let error = LoadError(vec![origin.error("", Code::YamlSyntax, "no YAML")]);
        configured.refused(&error);
        assert_eq!(configured.succeeded_late(), Some(2));
        assert_eq!(shown(&configured), (2, Some(&*error.to_string())));
        assert_eq!(configured.state().refused.len(), 1);
    }
}
