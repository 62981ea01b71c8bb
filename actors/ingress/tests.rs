//! The door over real sockets, with banks of our own behind it.

mod any_body;
mod harness;
mod life;
mod logprobs;
mod refusals;
mod structure;
mod texts;
