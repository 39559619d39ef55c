//! Who reaches whom, with which identity, under every mode: each row of the walkthrough's tables.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use mtls_tests::demo::{Expected, Family, From, Row, attempt, phases, report};
use mtls_tests::world::To;
use mtls_tests::{Capture, World};

fn check(family: Family) -> Result<()> {
    let mut world = World::new()?;
    let capture = Capture::start(world.node(0))?;
    let mut differing = Vec::new();
    for (number, phase) in phases().into_iter().enumerate() {
        if number > 0 {
            world.change(phase.change)?;
        }
        for row in &phase.rows {
            let (line, agrees) = report::line(row, &attempt(&world, &capture, row, family)?);
            if !agrees {
                differing.push(format!("{}:\n{line}", phase.title));
            }
        }
    }
    ensure!(differing.is_empty(), "{}", differing.join("\n"));
    Ok(())
}

#[test]
fn every_row_agrees_over_ipv4() -> Result<()> {
    check(Family::V4)
}

#[test]
fn every_row_agrees_over_ipv6() -> Result<()> {
    check(Family::V6)
}

#[test]
fn a_service_with_both_kinds_of_endpoint_is_answered_by_each_in_its_own_way() -> Result<()> {
    let world = World::new()?;
    let capture = Capture::start(world.node(0))?;
    let row = Row { from: From::Full, to: To::Partial, pod: None, expected: Expected::Either };
    let (mut with, mut without) = (0, 0);
    for tries in 1..=60 {
        let attempt = attempt(&world, &capture, &row, Family::V4)?;
        assert_eq!(row.expected.differs(&attempt), None);
        *(if attempt.identity.is_some() { &mut with } else { &mut without }) += 1;
        if tries >= 10 && with > 0 && without > 0 {
            return Ok(());
        }
    }
    anyhow::bail!("{with} with identity, {without} without: one endpoint is never chosen")
}
