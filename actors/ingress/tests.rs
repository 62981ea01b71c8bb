//! The door over real sockets, with banks of our own behind it.

mod admin;
mod agents;
mod anthropic;
mod any_body;
mod any_item;
mod clients;
mod formats;
mod fuzz;
pub(super) mod harness;
mod judges;
mod life;
mod limits;
mod logprobs;
mod nodes;
mod openapi;
mod refusals;
mod reload;
mod responses;
mod resume;
mod retry;
mod structure;
mod team;
mod tenants;
mod texts;
mod tools;
mod unknown;
