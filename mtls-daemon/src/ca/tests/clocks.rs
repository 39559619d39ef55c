//! A CA whose clock is wrong for a while.

use super::nodes::{WEB, agent, join_token};
use super::revoke::Target;
use super::*;
use crate::identity::NodeName;
use crate::identity::node::ca_id;
use crate::tls::svid::verify_svid;

const DAY: Duration = Duration::from_secs(24 * 3600);
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn what_was_made_while_the_clock_was_ahead_is_made_anew() {
    let place = tempfile::tempdir().unwrap();
    let (now, settings) = (SystemTime::now(), || settings(place.path()));
    // The root is from before.
    drop(Ca::open(settings(), Audit::to(Lines::default()), now).unwrap());
    let ca = Ca::open(settings(), Audit::to(Lines::default()), now + DAY).unwrap();
    let signer = ca_id(&domain(), "revocations").unwrap();
    let verify = |signing: &signing::Signing| {
        let anchors = signing.anchors.clone();
        let bundle = crate::identity::Bundle { trust_domain: domain(), anchors };
        verify_svid(&signing.statement_chain, &[bundle], Some(std::slice::from_ref(&signer)), now)
    };
    assert!(verify(&ca.signing()).is_err(), "nobody believes it now");
    ca.refresh(now).unwrap();
    assert!(verify(&ca.signing()).is_ok());
    drop(ca);

    let settings = settings();
    let running = Running::opened(place, settings, Times::default(), now + DAY).await;
    let deadline = std::time::Instant::now() + SOON;
    while let Err(error) = running.try_channel(None).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_ca_that_began_with_a_clock_ahead_still_knows_what_it_issued() {
    let running = Running::start().await;
    let node = agent(&running, Some(join_token(&running)), 24 * 3600);
    let svid = node.issue(WEB).await.unwrap();
    let now = SystemTime::now();
    for now in [now + 2 * DAY, now] {
        Ca::open(settings(running.place.path()), Audit::to(Lines::default()), now).unwrap();
    }
    let target = Target::Node(NodeName::parse("vm-1").unwrap());
    revoke::add(running.ca.directory(), &target, "stolen", now).unwrap();
    let held: revoke::Held = running.ca.directory().read(revoke::FILE).unwrap();
    assert!(held.names_serial(&svid.serial));
}
