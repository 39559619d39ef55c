//! Runs a walkthrough: every step with its policy, every answer as the originals print it, and
//! whether it is the expected one.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::until;
use crate::walkthrough::certificate::{self, Key};
use crate::walkthrough::transcript::{as_printed, loops, name, on_the_wire, verdict};
use crate::walkthrough::{
    Attempt, Check, Crossing, Family, Request, Step, Town, Walkthrough, attempt, steps,
};

/// What was seen, and what differs.
#[derive(Default)]
pub struct Played {
    pub differing: Vec<String>,
    /// One connection of each kind, as it crossed.
    pub encrypted: Option<Attempt>,
    pub clear: Option<Attempt>,
}

/// Runs every step in `town`, and gives the transcript to `say` line by line.
///
/// # Errors
/// When a step could not be made. What its requests come to is a result.
pub fn play(
    town: &mut Town,
    walkthrough: &Walkthrough,
    family: Family,
    say: &mut dyn FnMut(&str),
) -> Result<Played> {
    let mut played = Played::default();
    loops(walkthrough.path()).iter().for_each(|line| say(line));
    for (index, step) in walkthrough.steps.iter().enumerate() {
        say(&format!("\n{}: {}", step.id, step.title));
        if index > 0 {
            let before = town.world.mesh.clone();
            (step.change)(&mut town.world.mesh, &town.world.bed);
            for line in town.world.mesh.changes_since(&before) {
                say(&format!("  {line}"));
            }
            town.world.apply()?;
        }
        one(town, step, family, say, &mut played).with_context(|| step.title)?;
    }
    Ok(played)
}

fn one(
    town: &Town,
    step: &Step,
    family: Family,
    say: &mut dyn FnMut(&str),
    played: &mut Played,
) -> Result<()> {
    for check in &step.checks {
        let differs = match check {
            Check::Request(request) => {
                let attempt = attempt(town, request, family)?;
                let differs = attempt.differs(request);
                for line in as_printed(request, &attempt) {
                    say(&line);
                }
                say(&format!("    {}  {}", on_the_wire(&attempt), verdict(differs.as_deref())));
                let differs = differs.map(|how| format!("{}: {how}", name(request)));
                played.keep(attempt);
                differs
            }
            Check::Tries { request, tries, with } => {
                tried(town, request, *tries, *with, family, say)?
            }
            Check::Header(request) => header(town, request, family, say)?,
            Check::Certificate(question) => {
                let text = certificate::ask(town, *question, family)?;
                let wanted = certificate::lines("cluster.local", question.to, Key::P256);
                let differs = certificate::missing(&text, &wanted);
                say(&format!(
                    "openssl s_client -alpn istio -connect httpbin.{}, then openssl x509 -text",
                    question.to
                ));
                for line in text.lines().filter(|line| wanted.iter().any(|it| line.contains(it))) {
                    say(&format!("    {}", line.trim()));
                }
                let differs = differs.map(|line| format!("the certificate lacks {line:?}: {text}"));
                say(&format!("    {}", verdict(differs.as_deref())));
                differs
            }
        };
        played.differing.extend(differs.map(|how| format!("{} ({}): {how}", step.id, step.title)));
    }
    Ok(())
}

fn tried(
    town: &Town,
    request: &Request,
    tries: usize,
    with: steps::With,
    family: Family,
    say: &mut dyn FnMut(&str),
) -> Result<Option<String>> {
    let mut problem = None;
    let mut encrypted = Vec::new();
    // What has just joined may still be getting its certificate.
    if with == steps::With::All {
        until(Duration::from_secs(5), "a member's first answer with an identity", || {
            let crossings: Result<Vec<_>> =
                (0..4).map(|_| Ok(attempt(town, request, family)?.wire)).collect();
            match crossings {
                Ok(all) if all.iter().all(|wire| *wire == Crossing::Encrypted) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    // All on one side happens once in 500 runs of ten; then more.
    for tries in [tries, 2 * tries, 4 * tries] {
        while encrypted.len() < tries {
            let attempt = attempt(town, request, family)?;
            problem = problem.or(attempt.differs(request));
            encrypted.push(attempt.wire == Crossing::Encrypted);
        }
        if with == steps::With::All || encrypted.contains(&true) && encrypted.contains(&false) {
            break;
        }
    }
    let (tries, mutual) = (encrypted.len(), encrypted.iter().filter(|it| **it).count());
    let differs = problem.or_else(|| match with {
        steps::With::All if mutual < tries => Some("not all with identity".into()),
        steps::With::Some if mutual == 0 || mutual == tries => Some("one endpoint only".into()),
        _ => None,
    });
    say(&format!(
        "{}, {tries} times: {mutual} with URI, {} without  {}",
        name(request),
        tries - mutual,
        verdict(differs.as_deref())
    ));
    Ok(differs.map(|how| format!("{}, {mutual} of {tries} with URI: {how}", name(request))))
}

/// The whole header, as `grep X-Forwarded-Client-Cert` shows it.
fn header(
    town: &Town,
    request: &Request,
    family: Family,
    say: &mut dyn FnMut(&str),
) -> Result<Option<String>> {
    let attempt = attempt(town, request, family)?;
    let (by, uri) = (format!("spiffe://cluster.local/ns/{}/sa/httpbin", request.to), request.uri());
    let differs = attempt.differs(request).or_else(|| {
        let Some(Some(uri)) = uri else { return None };
        let header = attempt.header.as_deref().unwrap_or_default();
        let hash = header
            .strip_prefix(&format!("By={by};Hash="))
            .and_then(|rest| rest.strip_suffix(&format!(";Subject=\"\";URI={uri}")));
        let is_hash = |text: &str| {
            text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        (!hash.is_some_and(is_hash)).then(|| format!("another header: {header}"))
    });
    say(&format!(
        "curl http://httpbin.{}:8000/headers -s | grep X-Forwarded-Client-Cert   (sleep.{})",
        request.to, request.from
    ));
    for line in attempt.curl.body.lines().filter(|line| line.contains("X-Forwarded-Client-Cert")) {
        say(&format!("    {}", line.trim()));
    }
    say(&format!("    {}", verdict(differs.as_deref())));
    Ok(differs.map(|how| format!("{}: {how}", name(request))))
}

impl Played {
    /// Keeps the first of each kind that was answered.
    fn keep(&mut self, attempt: Attempt) {
        let place = match attempt.wire {
            Crossing::Encrypted => &mut self.encrypted,
            Crossing::Clear => &mut self.clear,
            Crossing::Nothing => return,
        };
        if attempt.curl.code == 200 && place.is_none() {
            *place = Some(attempt);
        }
    }
}
