//! The matrices: who reaches whom, how, under which policy. Printed by `mtls-demo`, asserted by
//! the test `matrices`.

pub mod attempt;
pub mod phases;
pub mod report;

pub use attempt::{Attempt, Crossing, Family, attempt};
pub use phases::{Expected, From, Phase, Row, SLEEP, phases};
