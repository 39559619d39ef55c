//! The walkthroughs that operators of Istio know, each a town of namespaces and a series of steps:
//! a policy, and what becomes of real curl's requests under it. Printed by `mtls-demo`, asserted by
//! the tests of the same name.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`town`] | namespaces with `sleep` and `httpbin`, enrolled or not |
//! | [`request`] | one request: what curl, the header, the access log and the wire say of it |
//! | [`steps`] | what a step is, and what may be expected |
//! | [`two`], [`three`], [`four`] | the walkthroughs' own tables |
//! | [`certificate`] | what `openssl` sees of a server |
//! | [`play`], [`transcript`] | runs a walkthrough, and what it reads like |

pub mod certificate;
pub mod four;
pub mod play;
pub mod request;
pub mod steps;
pub mod three;
pub mod town;
pub mod transcript;
pub mod two;

pub use play::{Played, play};
pub use request::{Attempt, Crossing, Family, attempt};
pub use steps::{Check, Expected, Link, Request, Step};
pub use town::{Member, Town};

/// A walkthrough: where it takes place, and its steps, each under the policies of those before it.
pub struct Walkthrough {
    pub number: u8,
    pub title: &'static str,
    pub members: Vec<Member>,
    /// More servers: a member's pod, and the port.
    pub servers: Vec<(&'static str, u16)>,
    pub steps: Vec<Step>,
}

impl Walkthrough {
    /// What most of its requests ask for.
    fn path(&self) -> &'static str {
        let checks = self.steps.iter().flat_map(|step| &step.checks);
        let mut paths = checks.filter_map(|check| match check {
            Check::Request(request) => Some(request.path),
            _ => None,
        });
        paths.next().unwrap_or("/headers")
    }
}

/// Those that there are: 2, 3 and 4.
pub fn all() -> Vec<Walkthrough> {
    vec![two::walkthrough(), three::walkthrough(), four::walkthrough()]
}
