//! The door over real sockets, with banks of our own behind it.

mod agents;
mod anthropic;
mod any_body;
mod any_item;
mod clients;
mod harness;
mod judges;
mod life;
mod refusals;
mod responses;
mod texts;
mod tools;
