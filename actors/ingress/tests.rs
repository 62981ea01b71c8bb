//! The door over real sockets, with banks of our own behind it.

mod admin;
mod agents;
mod anthropic;
mod any_body;
mod any_item;
mod clients;
mod harness;
mod judges;
mod life;
mod logprobs;
mod refusals;
mod responses;
mod structure;
mod texts;
mod tools;
