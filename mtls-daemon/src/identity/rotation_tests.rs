//! Rotation, as connections see it: handshakes across renewals, and a connection that is open all along.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::source::embedded::EmbeddedCa;
use super::{IdentitySlot, KeyType, SpiffeId, SvidStore, TrustDomain};
use crate::tls::accept::{ServerStream, accept};
use crate::tls::connect::{ClientStream, connect};
use crate::tls::{HandshakeError, Replay};

/// Renewed after half of it. Certificates carry whole seconds, so up to one less is left of it: a
/// second more than that keeps a busy machine from missing the renewal.
const LIFETIME: Duration = Duration::from_secs(3);

/// At least two renewals, and the end of the first SVID.
const PLAYED: Duration = Duration::from_secs(5);

const SNI: &str = "outbound_.80_._.server.full.svc.cluster.local";

struct Handshake {
    client: ClientStream,
    server: ServerStream,
    /// Of both SVIDs.
    serials: [String; 2],
}

/// One as a worker makes it, with the SVIDs of this moment.
async fn handshake(
    client: &IdentitySlot,
    server: &IdentitySlot,
) -> Result<Handshake, HandshakeError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    let ours = client.current().expect("the client is never without an SVID");
    let theirs = server.current().expect("the server is never without an SVID");
    let expected: Arc<[SpiffeId]> = Arc::new([server.id().clone()]);
    let (connected, accepted) =
        tokio::join!(connect(near, &ours, &expected, SNI), accept(Replay::new(far), &theirs, None));
    let ((near, _, _), (far, peer, _)) = (connected?, accepted?);
    assert_eq!(peer.id(), client.id());
    let serials = [ours.serial().to_owned(), theirs.serial().to_owned()];
    Ok(Handshake { client: near, server: far, serials })
}

async fn pass<A, B>(from: &mut A, to: &mut B, bytes: &[u8])
where
    A: AsyncWrite + Unpin,
    B: AsyncRead + Unpin,
{
    from.write_all(bytes).await.unwrap();
    from.flush().await.unwrap();
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got).await.unwrap();
    assert_eq!(got, bytes);
}

#[tokio::test]
async fn no_handshake_fails_across_renewals_and_an_open_connection_survives_them() {
    let directory = tempfile::tempdir().unwrap();
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let ca = EmbeddedCa::open(
        &directory.path().join("ca"),
        domain.clone(),
        KeyType::default(),
        LIFETIME,
    )
    .unwrap();
    let store = SvidStore::new(Arc::new(ca), Vec::new(), crate::tls::HandshakeSettings::plain());
    let slot = |account| store.slot(&SpiffeId::istio(&domain, "full", account).unwrap());
    let (client, server) = (slot("client"), slot("server"));
    let running = tokio::spawn(store.clone().run());
    let limit = Duration::from_secs(10);
    let first = client.wait(limit).await.expect("an SVID");
    server.wait(limit).await.expect("an SVID");

    let mut open = handshake(&client, &server).await.unwrap();
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    let (begun, mut handshakes) = (Instant::now(), 0);
    while begun.elapsed() < PLAYED {
        let made = handshake(&client, &server).await;
        let made = made.unwrap_or_else(|error| panic!("after {:?}: {error}", begun.elapsed()));
        for (seen, serial) in serials.iter_mut().zip(made.serials) {
            seen.insert(serial);
        }
        pass(&mut open.client, &mut open.server, b"ping").await;
        pass(&mut open.server, &mut open.client, b"pong").await;
        handshakes += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.abort();

    assert!(handshakes > 20, "only {handshakes}");
    assert!(first.not_after() < SystemTime::now(), "the open connection outlived its SVID");
    for seen in serials {
        assert!(seen.len() >= 3, "renewed twice: {seen:?}");
    }
    assert_eq!(store.issued_failed(), 0);
}
