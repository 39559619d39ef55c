//! How old a connection may become: after that its peers have to show their certificates anew.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Listening;
use crate::drain;

/// Connections that were opened together do not all end together: up to this share of the age earlier.
const JITTER: f64 = 0.1;

/// Of every connection that the daemon carries.
#[derive(Debug, Clone, Copy)]
pub struct MaxAge {
    pub age: Duration,
    /// What is under way may take so much longer.
    pub grace: Duration,
}

/// When one connection is asked to end, and when it is ended.
#[derive(Debug, Clone, Copy)]
pub struct End {
    asked: Instant,
    last: Instant,
}

impl MaxAge {
    /// Of a connection that is opened now. The server's side comes first, which can end HTTP between
    /// two requests; a client's daemon only sees bytes.
    pub fn end(self, listening: Listening) -> End {
        let early = JITTER * fastrand::f64();
        let asked = Instant::now() + self.age.mul_f64(1.0 - early);
        let grace = match listening {
            Listening::Inbound => self.grace,
            Listening::Outbound => self.grace * 2 + self.age.mul_f64(early),
        };
        End { asked, last: asked + grace }
    }
}

/// Resolves when the connection's time is over; never without a limit.
pub async fn too_old(end: Option<End>) {
    match end {
        Some(end) => sleep_until(end.last).await,
        None => pending().await,
    }
}

/// Says when a client is to ask its next request of somebody else: the daemon is about to end, or the
/// connection is old.
#[derive(Clone, Copy)]
pub struct Leaving<'a> {
    drain: &'a drain::Watch,
    asked: Option<Instant>,
}

impl<'a> Leaving<'a> {
    pub fn new(drain: &'a drain::Watch, end: Option<End>) -> Self {
        Self { drain, asked: end.map(|end| end.asked) }
    }

    pub fn is_due(&self) -> bool {
        self.drain.is_draining() || self.asked.is_some_and(|asked| asked <= Instant::now())
    }

    /// Resolves when it is due. Cancel-safe.
    pub async fn due(&self) {
        let old = async {
            match self.asked {
                Some(asked) => sleep_until(asked).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.drain.draining() => {}
            () = old => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_side_asks_first_and_ends_first() {
        let seconds = Duration::from_secs;
        let limit = MaxAge { age: seconds(100), grace: seconds(5) };
        for _ in 0..1000 {
            let begun = Instant::now();
            let (server, client) = (limit.end(Listening::Inbound), limit.end(Listening::Outbound));
            let asked = server.asked - begun;
            assert!(asked >= seconds(90) && asked <= seconds(101), "{asked:?}");
            assert_eq!(server.last - server.asked, seconds(5));
            assert!(client.last - begun >= seconds(109), "{:?}", client.last - begun);
        }
    }

    #[tokio::test]
    async fn whichever_comes_first_is_said() {
        let (drain, watch) = drain::channel();
        let limit = MaxAge { age: Duration::from_millis(20), grace: Duration::from_millis(20) };
        let (begun, end) = (Instant::now(), limit.end(Listening::Inbound));
        let old = Leaving::new(&watch, Some(end));
        assert!(!old.is_due());
        old.due().await;
        assert!(old.is_due() && begun.elapsed() >= Duration::from_millis(18));
        too_old(Some(end)).await;
        assert!(begun.elapsed() >= Duration::from_millis(38));

        let young = Leaving::new(&watch, None);
        let while_ = Duration::from_millis(50);
        assert!(tokio::time::timeout(while_, young.due()).await.is_err());
        assert!(tokio::time::timeout(while_, too_old(None)).await.is_err());
        drain.start();
        young.due().await;
        assert!(young.is_due());
    }
}
