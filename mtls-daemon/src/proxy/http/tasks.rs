//! The tasks of one connection, as one future: they share its thread and its borrows, and end with it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, Stream};
use hyper::rt::Executor;

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Takes tasks from anywhere within the connection.
#[derive(Clone, Default)]
pub struct Spawner<'a>(Rc<RefCell<Vec<Task<'a>>>>);

impl<'a> Spawner<'a> {
    pub fn spawn(&self, task: impl Future<Output = ()> + 'a) {
        self.0.borrow_mut().push(Box::pin(task));
    }
}

impl<'a, F: Future + 'a> Executor<F> for Spawner<'a> {
    fn execute(&self, task: F) {
        self.spawn(async move {
            task.await;
        });
    }
}

/// Runs what a [`Spawner`] takes.
#[derive(Default)]
pub struct Tasks<'a> {
    pub spawner: Spawner<'a>,
    running: FuturesUnordered<Task<'a>>,
}

impl<'a> Tasks<'a> {
    /// Until `main` is done.
    pub async fn run<F: Future>(&mut self, main: F) -> F::Output {
        let mut main = pin!(main);
        poll_fn(|cx| {
            let result = main.as_mut().poll(cx);
            if result.is_pending() {
                self.turn(cx);
            }
            result
        })
        .await
    }

    /// Until none is left.
    pub async fn finish(&mut self) {
        poll_fn(|cx| {
            self.turn(cx);
            if self.running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn turn(&mut self, cx: &mut Context<'_>) {
        loop {
            self.running.extend(self.spawner.0.borrow_mut().drain(..));
            while let Poll::Ready(Some(())) = Pin::new(&mut self.running).poll_next(cx) {}
            if self.spawner.0.borrow().is_empty() {
                return;
            }
        }
    }
}
