//! Over real sockets: a client, the daemon's side, an application that records what it gets.

mod bench;
mod forged;
mod parting;
mod smuggled;
mod streams;
mod switched;
mod unanswered;
