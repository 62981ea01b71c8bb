//! Which of several engines a request goes to: the one where it costs least.
//!
//! What a request costs an engine is counted in prompt tokens: those of it that are not warm there,
//! those of others that are to be fed before it, and what the rows come to that are there. So a
//! conversation goes back to where it was, until the queue there costs more than feeding it anew
//! elsewhere would.
//!
//! What is warm where is not asked, it is remembered: by hashes of blocks of the prompts that were
//! sent there, the last [`BLOCKS_MAX`] of each engine. That is an estimate. A wrong one costs time,
//! never a text.
//!
//! However warm a request is, no engine is given a row that would make it have more than
//! [`RATIO_MAX`] times its share of all rows, by slots, and [`SLACK`] more: so none is idle while
//! others queue.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Tenant, Token};

/// Tokens of a block.
pub const BLOCK: usize = 32;
/// Blocks remembered of each engine.
pub const BLOCKS_MAX: usize = 1 << 16;
/// Times its share of rows that an engine may have.
pub const RATIO_MAX: f64 = 1.5;
/// Rows that it may have beyond that, so that a few conversations do not part over it.
pub const SLACK: f64 = 2.0;
/// What an engine costs, all of whose slots are taken, in tokens: its rows share its steps.
const FULL: f64 = 128.0;
/// What a row costs that waits for one of all the slots, in tokens.
const WAITS: f64 = 1024.0;

/// An engine; the next one of the same machine has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// Whether an engine is sent requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It is.
    #[default]
    Ready,
    /// It was not heard of for a while: only if there is no other.
    Silent,
    /// It is to finish what it has.
    Draining,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Whose states it may start from.
    pub tenant: Tenant,
    /// Its prompt.
    pub prompt: &'a [Token],
    /// Whether it leaves its own states behind.
    pub leaves: bool,
}

/// What was decided, and what it adds to that engine until it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The engine.
    pub node: NodeId,
    /// Tokens of the prompt that are thought to be warm there.
    pub warm: usize,
    /// Tokens to be fed.
    pub cold: usize,
}

/// One engine, as it is known here.
#[derive(Clone, Debug, Default)]
struct Node {
    slots: usize,
    health: Health,
    rows: usize,
    /// Tokens to be fed of rows that have no slot yet.
    queued: usize,
    /// When it was last chosen.
    chosen: u64,
    warm: Warm,
}

/// An engine in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Rows that were sent there and are not over.
    pub rows: usize,
    /// Tokens to be fed of those that have no slot.
    pub queued: usize,
    /// Whether it is sent more.
    pub health: Health,
}

/// All engines.
#[derive(Clone, Debug, Default)]
pub struct Route {
    nodes: BTreeMap<NodeId, Node>,
    /// Counts what was placed: the clock of all that is remembered.
    now: u64,
}

impl Route {
    /// An engine that can run so many rows at once. It has nothing warm.
    pub fn join(&mut self, id: NodeId, slots: usize) {
        self.nodes.insert(id, Node { slots: slots.max(1), ..Node::default() });
    }

    /// It is gone, with all that was warm there.
    pub fn leave(&mut self, id: NodeId) {
        self.nodes.remove(&id);
    }

    /// Whether it is sent requests from now on.
    pub fn turn(&mut self, id: NodeId, health: Health) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.health = health;
        }
    }

    /// How it stands with an engine.
    #[must_use]
    pub fn load(&self, id: NodeId) -> Option<Load> {
        let Node { rows, queued, health, .. } = *self.nodes.get(&id)?;
        Some(Load { rows, queued, health })
    }

    /// Whether a request that lost its row on `last` could go elsewhere.
    #[must_use]
    pub fn has_other(&self, last: Option<NodeId>) -> bool {
        let fit =
            |(&id, node): (&NodeId, &Node)| node.health != Health::Draining && Some(id) != last;
        self.nodes.iter().any(fit)
    }

    /// Chooses an engine other than `last` and counts the request there, until it is seated and
    /// until it has left.
    pub fn place(&mut self, ask: &Ask<'_>, last: Option<NodeId>) -> Option<Placed> {
        let usable = |health| {
            let of = move |(&id, node): (&NodeId, &Node)| node.health == health && Some(id) != last;
            self.nodes.iter().filter(move |&(id, node)| of((id, node))).collect::<Vec<_>>()
        };
        let ready = usable(Health::Ready);
        let some = if ready.is_empty() { usable(Health::Silent) } else { ready };
        let slots: usize = some.iter().map(|(_, node)| node.slots).sum();
        let rows: usize = some.iter().map(|(_, node)| node.rows).sum();
        let share = (rows + 1) as f64 / slots.max(1) as f64;
        let blocks = blocks(ask.tenant, ask.prompt);
        let best = some.into_iter().filter(|(_, node)| node.has_room(share)).map(|(&id, node)| {
            let warm = (node.warm.common(&blocks) * BLOCK).min(ask.prompt.len());
            let cold = ask.prompt.len() - warm;
            (node.cost(cold), node.chosen, Placed { node: id, warm, cold })
        });
        let (_, _, placed) = best.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?;
        self.now += 1;
        let node = self.nodes.get_mut(&placed.node)?;
        node.rows += 1;
        node.queued += placed.cold;
        node.chosen = self.now;
        if ask.leaves {
            node.warm.note(&blocks, self.now);
        }
        Some(placed)
    }

    /// A placed request got a slot.
    pub fn seated(&mut self, placed: &Placed) {
        if let Some(node) = self.nodes.get_mut(&placed.node) {
            node.queued = node.queued.saturating_sub(placed.cold);
        }
    }

    /// It is over, seated or not.
    pub fn left(&mut self, placed: &Placed, seated: bool) {
        if !seated {
            self.seated(placed);
        }
        if let Some(node) = self.nodes.get_mut(&placed.node) {
            node.rows = node.rows.saturating_sub(1);
        }
    }
}

impl Node {
    fn cost(&self, cold: usize) -> f64 {
        let slots = self.slots as f64;
        let beyond = (self.rows + 1).saturating_sub(self.slots) as f64;
        let busy = self.rows.min(self.slots) as f64;
        (cold + self.queued) as f64 + FULL * busy / slots + WAITS * beyond / slots
    }

    /// Whether one more row is no more than it may have, where each slot's share is `share`.
    fn has_room(&self, share: f64) -> bool {
        (self.rows + 1) as f64 <= RATIO_MAX * share * self.slots as f64 + SLACK
    }
}

/// Blocks that were sent somewhere, those that were not for longest going first.
#[derive(Clone, Debug, Default)]
struct Warm {
    last: BTreeMap<u64, (u64, usize)>,
    by_use: BTreeSet<(u64, usize, u64)>,
}

impl Warm {
    /// How many of these, from the first on, were.
    fn common(&self, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|block| self.last.contains_key(block)).count()
    }

    fn note(&mut self, blocks: &[u64], now: u64) {
        // Of one prompt the last go first: the others are of no use without those before them.
        for (at, &block) in blocks.iter().take(BLOCKS_MAX).enumerate() {
            let place = usize::MAX - at;
            if let Some((then, place)) = self.last.insert(block, (now, place)) {
                self.by_use.remove(&(then, place, block));
            }
            self.by_use.insert((now, place, block));
        }
        while self.last.len() > BLOCKS_MAX {
            let Some((_, _, block)) = self.by_use.pop_first() else { break };
            self.last.remove(&block);
        }
    }
}

/// The hash of every whole block of a tenant's prompt, each with all before it.
fn blocks(tenant: Tenant, prompt: &[Token]) -> Vec<u64> {
    let mut hash = 0x6d74_706c_7821_0002_u64 ^ tenant.0.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let fold = |hash: u64, token: Token| {
        let hash = (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ (hash >> 29)
    };
    let next = |block: &[Token]| {
        hash = block.iter().fold(hash, |hash, &token| fold(hash, token));
        hash
    };
    prompt.chunks_exact(BLOCK).map(next).collect()
}

#[cfg(test)]
mod tests;
