//! Comch: servers, clients, producers and consumers, and the sockets beneath them.

mod control;
mod data;
mod frame;
mod inbox;
mod link;
mod meeting;
mod reactor;
