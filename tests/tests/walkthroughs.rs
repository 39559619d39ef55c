//! The walkthroughs' tables, end to end with real curl: every request under every policy.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use mtls_tests::Town;
use mtls_tests::walkthrough::{self, Family, Walkthrough};

fn walk(number: u8, family: Family) -> Result<()> {
    let walkthrough = find(number);
    let mut town = Town::of(&walkthrough)?;
    let mut transcript = Vec::new();
    let mut say = |line: &str| transcript.push(line.to_owned());
    let played = walkthrough::play(&mut town, &walkthrough, family, &mut say)?;
    println!("{}", transcript.join("\n"));
    ensure!(played.differing.is_empty(), "{}", played.differing.join("\n"));
    Ok(())
}

fn find(number: u8) -> Walkthrough {
    let found = walkthrough::all().into_iter().find(|of| of.number == number);
    found.expect("there is a walkthrough of this number")
}

#[test]
fn walkthrough_2_for_the_mesh_a_namespace_a_workload() -> Result<()> {
    walk(2, Family::V4)
}

#[test]
fn walkthrough_3_one_service_and_who_may_reach_it() -> Result<()> {
    walk(3, Family::V4)
}

#[test]
fn walkthrough_4_automatic_mutual_tls() -> Result<()> {
    walk(4, Family::V4)
}

#[test]
fn walkthrough_4_automatic_mutual_tls_over_ipv6() -> Result<()> {
    walk(4, Family::V6)
}

#[test]
fn in_walkthrough_4_clients_adapt_without_a_rule_of_their_own() -> Result<()> {
    // S4-8: the steps before the one that is about a rule have none.
    let walkthrough = find(4);
    let bed = mtls_tests::Testbed::new(&[])?;
    let mut mesh = mtls_tests::Mesh::new(bed.config_directory());
    for step in walkthrough.steps.iter().take_while(|step| step.id != "S4-7") {
        (step.change)(&mut mesh, &bed);
        ensure!(mesh.count("DestinationRule") == 0, "{} has one", step.id);
    }
    Ok(())
}
