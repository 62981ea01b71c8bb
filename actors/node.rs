//! Several machines: one that keeps the door, the *gateway*, and others that have engines, the
//! *nodes*. Sessions between them are ractor_cluster's: actors of one are addressed from the other.
//!
//! ```text
//!           the gateway                                  a node
//!   ingress ──Open──► far ═══Order═══════════════════► worker ──Open──► bank ─► decode
//!      ▲               ▲ ◄─Heard── gate ◄═══Word══════════│ ▲                    │
//!      └────events─────┘                                  └─┴──────events────────┘
//! ```
//!
//! | actor | where | owns | dies |
//! | --- | --- | --- | --- |
//! | [`gate`] | gateway | who is a member | with the process |
//! | [`far`] | gateway, one a membership | rows made there | when node or engine is lost |
//! | [`worker`] | node | rows for the gateway | with the process |
//!
//! **Who serves what.** [`nodes::Nodes`] holds the core's [`mtplx_core::route::Route`] and is asked
//! by the door itself, so there is no mailbox more than the one of the engine that was chosen. A
//! process without `[cluster]` has none of this: its requests go from ingress to bank, as ever.
//!
//! **Hops.** Ingress, `far`, four actors of ractor_cluster (remote actor, session, connection,
//! writer), the network, three more, `worker`, `bank`, `decode`. Tokens come back by `worker`, the
//! same seven, `gate` and `far`: what all rows made within a millisecond, which is one cycle, is
//! one message. A hop takes some microseconds, and a cycle milliseconds.
//!
//! **What is bounded.** Rows by the permits of the door, whose own are held until the node says
//! that a row has left; tokens on their way by what rows may make; messages by
//! [`wire::FRAME_BYTES_MAX`].
//!
//! **Losing a node** is losing an engine: `far` dies, the streams of its rows close, and each
//! answer goes on from its prompt and what was made of it with another (`ingress::stream::course`).
//! A membership has a number that nobody can guess and every row of it a name of its own, so what a
//! lost one still says is addressed to nobody. Both sides tell each other every `beat_s` that they
//! live, and take the other for lost after `silence_s` without a word; the node then ends its rows,
//! which somebody else makes by now, and asks to join anew. That is told anew, too, when its engine
//! was lost and the next one is open.
//!
//! **Who is to blame.** Of a row that was lost the node says whether its engine was at work on it
//! when that ended; the door counts it as it counts those of an engine of its own, so a request
//! that ends every engine is given up before it has ended all. A node that is cut off or killed
//! says nothing, and nobody is blamed for it.
//!
//! **Leaving.** A node that is drained, or that is to end, gets nothing new; what it has may
//! finish, and goes on elsewhere when the time is over. One that was drained can be resumed.
//!
//! **Who may join.** Whoever holds the secret ([`secret`]) and has the same version, model,
//! template and numerics: else texts would depend on who made them. What was read from the network
//! is looked at before it is used; actors that are not of this cast cannot be addressed from
//! elsewhere, as their messages have no bytes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod far;
pub mod gate;
pub mod nodes;
pub mod porch;
pub mod secret;
mod session;
#[cfg(test)]
pub(crate) mod tests;
mod wire;
pub mod worker;

pub use nodes::{Nodes, Report, Seat, Stays};

/// Names of groups by which actors of one machine find those of the other.
const SCOPE: &str = "mtplx";
const GATE: &str = "gate";

/// Where nodes may join, and how.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where nodes may join, as `host:port`; empty: nowhere.
    pub listen: String,
    /// The file of the secret that all nodes share.
    pub secret: PathBuf,
    /// Whether the gateway has an engine, too.
    pub engine: bool,
    /// Seconds between two signs of life.
    pub beat_s: f64,
    /// Seconds without any after which the other side is taken for lost.
    pub silence_s: f64,
}

impl Config {
    /// Whether there may be nodes.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.listen.is_empty()
    }

    /// Proves what its numbers and their relations must be.
    ///
    /// # Errors
    /// What is wrong, in words that name the setting.
    pub fn check(&self) -> Result<(), String> {
        let rules = [
            ((0.05..=60.0).contains(&self.beat_s), "cluster.beat_s must be from 0.05 to 60"),
            (
                self.silence_s >= 3.0 * self.beat_s && self.silence_s <= 3600.0,
                "cluster.silence_s must be at least three times cluster.beat_s, at most 3600",
            ),
            (
                !self.is_on() || !self.secret.as_os_str().is_empty(),
                "cluster.secret must name the file of the secret that all nodes share; `mtplx \
                 node secret FILE` makes one",
            ),
        ];
        let broken = rules.into_iter().find(|(holds, _)| !holds);
        broken.map_or(Ok(()), |(_, rule)| Err(rule.to_owned()))
    }
}

/// What must be the same on all machines, but for the engine's numerics, which it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of the program.
    pub version: String,
    /// Digest of the model's files.
    pub model: String,
    /// Digest of what turns messages into tokens.
    pub template: String,
}

/// A number nobody can guess.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
