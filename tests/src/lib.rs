//! The testbed: nodes, pods and the wire between them, made of real network namespaces, with real
//! processes, a real daemon per node and a capture of what crosses.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`bed`] | [`Testbed`]: nodes, pods, addresses; removed again when dropped |
//! | [`leftovers`] | names, and how everything that bears one is removed, whoever left it |
//! | [`netns`], [`cgroup`] | entering and making them |
//! | [`host`], [`hosts`] | workloads in a node's own namespace, known by cgroup; two such hosts |
//! | [`process`], [`lines`], [`wait`] | processes, what they print, waiting for a condition |
//! | [`wire`] | the capture: TCP payload by flow, as it crossed between the nodes |
//! | [`mesh`], [`yaml`] | configuration as an operator writes it |
//! | [`daemon`], [`admin`] | one `mtls-daemon`, its status, access log and metrics |
//! | [`ca`] | a CA server that nodes join, with its commands |
//! | [`world`] | the topology that most tests share: `full`, `partial` and `legacy` |
//! | [`web`] | the one that tests of HTTP share |
//! | [`apps`] | the applications: servers that run as processes in pods |
//! | [`client`], [`curl`] | the applications' other end |
//! | [`openssl`] | a TLS peer, and a CA, that share no code with the daemon |
//! | [`recorder`], [`talker`] | an application that records what reaches it; a client that writes HTTP by hand |
//! | [`late`] | a peer of the mesh whose ClientHello comes late |
//! | [`mariadb`], [`smtp`] | real servers that speak first, and their real clients |
//! | [`walkthrough`], [`demo`] | the walkthroughs, shared by `mtls-demo` and the tests |
//! | [`secrets`] | private keys, looked for in a process' memory and in what it prints |
//! | [`svids`] | certificates in directories, as an operator's own tools put them there |
//! | [`settings`] | what the daemon could set in a namespace, to compare with |
//! | [`servers`] | Redis and nginx with TLS of their own, and an authority for them |
#![forbid(unsafe_code)]

pub mod admin;
pub mod apps;
pub mod bed;
pub mod ca;
pub mod cgroup;
pub mod client;
pub mod curl;
pub mod daemon;
pub mod demo;
pub mod host;
pub mod hosts;
pub mod late;
pub mod leftovers;
pub mod lines;
pub mod mariadb;
pub mod mesh;
pub mod netns;
pub mod openssl;
pub mod packet;
pub mod process;
pub mod recorder;
pub mod secrets;
pub mod servers;
pub mod settings;
pub mod smtp;
pub mod svids;
pub mod talker;
pub mod wait;
pub mod walkthrough;
pub mod web;
pub mod wire;
pub mod world;
pub mod yaml;

pub use bed::{Node, Pod, PodSpec, Testbed};
pub use ca::Ca;
pub use daemon::{Daemon, DaemonSpec};
pub use mesh::Mesh;
pub use wait::{eventually, until};
pub use walkthrough::Town;
pub use wire::Capture;
pub use world::World;
