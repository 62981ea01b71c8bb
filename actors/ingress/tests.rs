//! The door over real sockets, with banks of our own behind it.

mod admin;
mod any_body;
mod harness;
mod life;
mod refusals;
mod texts;
