//! The door over real sockets, with banks of our own behind it.

mod anthropic;
mod any_body;
mod harness;
mod judges;
mod life;
mod refusals;
mod responses;
mod texts;
mod tools;
