//! The port, and what has to be done from time to time.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::connection::{self, Times};
use super::issue::Ca;
use super::issued;
use super::steady::{HOUR, Steady};

const CONNECTIONS: usize = 4096;
/// How soon a change in the CA's files takes effect.
const REFRESH: Duration = Duration::from_secs(1);

/// How long the end waits for what is under way.
const FINISH: Duration = Duration::from_secs(10);

/// Serves until `stop` resolves; what was asked by then is answered, and written down.
pub async fn serve(
    ca: Arc<Ca>,
    listener: TcpListener,
    times: Times,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (stopping, stopped) = watch::channel(false);
    // With this function ends whatever it serves.
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            while connections.try_join_next().is_some() {}
            // Before accepting: what finds no place waits in the kernel's queue.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (ca, stopped) = (ca.clone(), stopped.clone());
                    connections.spawn(async move {
                        let served = connection::serve(ca, stream, peer, times, stopped).await;
                        if let Err(error) = served {
                            tracing::info!(%peer, %error, "a connection ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = refresh(&ca) => {}
        () = stop => {}
    }
    drop(listener);
    stopping.send_replace(true);
    let finish = async {
        while connections.join_next().await.is_some() {}
        // Also what was asked by those who did not wait for the answer.
        ca.finished().await;
    };
    if tokio::time::timeout(FINISH, finish).await.is_err() {
        tracing::warn!("requests are still under way after {FINISH:?}: they are left");
    }
}

async fn refresh(ca: &Arc<Ca>) {
    let mut failed = None;
    let mut looked: Option<Instant> = None;
    let mut steady = Steady::new(Instant::now(), SystemTime::now());
    loop {
        let hourly = looked.is_none_or(|at| at.elapsed() > HOUR);
        if hourly {
            looked = Some(Instant::now());
        }
        let (ca, now) = (ca.clone(), SystemTime::now());
        let forget = steady.for_an_hour(Instant::now(), now);
        let refresh = move || {
            if hourly {
                say_endings(&ca, now);
            }
            if forget && let Err(error) = issued::compact(ca.directory(), now) {
                // It grows until then, and nothing else.
                tracing::error!(%error, "what has expired is not forgotten; it is tried again in an hour");
            }
            ca.refresh(now)
        };
        let refreshed = tokio::task::spawn_blocking(refresh).await;
        let error = match refreshed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        // Once for each fault, not every second.
        if let Some(error) = &error
            && failed.as_ref() != Some(error)
        {
            tracing::error!(%error, "the CA goes on with the roots that it has");
        }
        failed = error;
        tokio::time::sleep(REFRESH).await;
    }
}

/// Nobody looks at a certificate of ten years: its end would come as an outage.
fn say_endings(ca: &Ca, now: SystemTime) {
    for ending in ca.signing().endings(now) {
        if ending.ended {
            tracing::error!("{ending}: what hangs from it is trusted no more");
        } else {
            tracing::warn!("{ending}: make a new one in time (`ca root rotate`)");
        }
    }
}
