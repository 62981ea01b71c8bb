//! Whose request is next: virtual token counters with lift, and classes with ageing.
//!
//! Every client has a counter of the service it got, divided by its weight, and the request of the
//! client with the lowest is next (Sheng et al., *Fairness in Serving Large Language Models*, OSDI
//! 2024). A client who comes back is lifted to the lowest of those present, so that nobody saves
//! up. Nothing is held back for anybody: whenever there is room and somebody waits, one is seated.
//!
//! Several clients may stand behind one key. What that key weighs is divided among those of them
//! who are present, so that a key with twenty people behind it gets no more than a key of one.
//!
//! What follows, for any two clients who always have requests waiting: what they got differs, by
//! weight, by no more than the rows of both can get meanwhile. And a request of a client with the
//! lowest counter waits for no more than the first row that ends.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// Who is charged for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(pub u64);

/// How a request stands among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whose it is.
    pub client: Client,
    /// Who shares the weight with it: all clients of one group, as far as they are present.
    pub group: Client,
    /// Shares of service, of the group: twice the weight, twice the tokens while both want more.
    pub weight: NonZeroU32,
    /// Whether somebody reads along.
    pub class: Class,
}

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// It has time, within bounds: it ages.
    Background,
}

/// A prompt's token that is computed, in units of service. Those that a snapshot covers are free.
const FED: u64 = 1;
/// A token that is generated: it reads all weights, together with those of other rows.
const MADE: u64 = 2;
/// Counters count in this part of a unit of service, so that weights divide it.
const SCALE: u64 = 1 << 16;
/// Units of service to everybody after which what is in the background is as urgent as the rest.
const PATIENCE: u64 = 1 << 16;
/// Units of service, by weight, that nobody present is further ahead of whoever asks: a client that
/// took little beside one who took all that was left over has not saved it up.
const LAG: u64 = 1 << 16;
/// Clients without a request whose counters are remembered.
const ABSENT_MAX: usize = 4096;

/// The counters.
#[derive(Clone, Debug, Default)]
pub struct Fairness {
    accounts: BTreeMap<Client, Account>,
    /// How many clients of each group are present.
    groups: BTreeMap<Client, u64>,
    /// Units of service so far: the clock by which requests age.
    served: u64,
    /// The highest counter of anybody whose request ended.
    left: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    counter: u64,
    /// Requests here, waiting or running.
    present: usize,
    weight: u64,
    group: Client,
    /// Prompt tokens fed for it: the clock by which its prompts age among each other.
    fed: u64,
}

/// Where a request stands in the queue; the lowest is next. Among equals whoever has less running
/// or waiting is first, then whoever came first.
pub type Rank = (Class, u64, usize);

/// Units of service: so many tokens of prompts computed, so many generated.
#[must_use]
pub fn service(fed: usize, made: usize) -> u64 {
    FED * fed as u64 + MADE * made as u64
}

impl Default for Standing {
    fn default() -> Self {
        let (client, class) = (Client::default(), Class::default());
        Self { client, group: client, weight: NonZeroU32::MIN, class }
    }
}

impl Fairness {
    /// A request has come.
    pub fn enter(&mut self, standing: Standing) {
        let floor = self.floor();
        let present = self.accounts.values().filter(|account| account.present > 0);
        let most = present.map(|account| account.counter).max().unwrap_or(0);
        let account = self.accounts.entry(standing.client).or_default();
        if account.present == 0 {
            account.counter = account.counter.max(floor);
        }
        account.counter = account.counter.max(most.saturating_sub(LAG * SCALE));
        account.weight = standing.weight.get().into();
        if account.present == 0 {
            account.group = standing.group;
            *self.groups.entry(standing.group).or_default() += 1;
        }
        account.present += 1;
    }

    /// A request has ended, wherever it stood.
    pub fn leave(&mut self, client: Client) {
        let Some(account) = self.accounts.get_mut(&client) else { return };
        if account.present == 1
            && let Some(members) = self.groups.get_mut(&account.group)
        {
            *members -= 1;
            if *members == 0 {
                self.groups.remove(&account.group);
            }
        }
        account.present = account.present.saturating_sub(1);
        self.left = self.left.max(account.counter);
        if self.absent() > ABSENT_MAX {
            // A lift would raise these anyway.
            let floor = self.floor();
            self.accounts.retain(|_, account| account.present > 0 || account.counter > floor);
        }
        if self.absent() > ABSENT_MAX {
            self.accounts.retain(|_, account| account.present > 0);
        }
    }

    /// The lowest counter of those present; of an empty house, that of who left with most.
    fn floor(&self) -> u64 {
        let present = self.accounts.values().filter(|account| account.present > 0);
        present.map(|account| account.counter).min().unwrap_or(self.left)
    }

    fn absent(&self) -> usize {
        self.accounts.values().filter(|account| account.present == 0).count()
    }

    /// A request was served: so many tokens of its prompt were computed, so many generated.
    pub fn charge(&mut self, standing: Standing, fed: usize, made: usize) {
        let units = service(fed, made);
        self.served += units;
        if let Some(account) = self.accounts.get_mut(&standing.client) {
            let members = self.groups.get(&account.group).copied().unwrap_or(1);
            account.counter += units * SCALE * members / u64::from(standing.weight.get());
        }
    }

    /// Tokens of a prompt are fed.
    pub fn feed(&mut self, client: Client, tokens: usize) {
        if let Some(account) = self.accounts.get_mut(&client) {
            account.fed += tokens as u64;
        }
    }

    /// Prompt tokens fed for a client who is here.
    #[must_use]
    pub fn fed(&self, client: Client) -> u64 {
        self.accounts.get(&client).map_or(0, |account| account.fed)
    }

    /// Whether a client that has `rows` of `seats` has more than its share of them, by its part of
    /// its group's weight among those present.
    #[must_use]
    pub fn is_beyond_share(&self, client: Client, rows: usize, seats: usize) -> bool {
        let part = |account: &Account| {
            let members = self.groups.get(&account.group).copied().unwrap_or(1);
            account.weight * SCALE / members
        };
        let present = self.accounts.values().filter(|account| account.present > 0);
        let all: u64 = present.map(part).sum();
        let own = self.accounts.get(&client).map_or(SCALE, part);
        rows as u64 * all > seats as u64 * own
    }

    /// The clock, to be remembered by a request that comes.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.served
    }

    /// Where a request stands that came at `since`.
    #[must_use]
    pub fn rank(&self, standing: Standing, since: u64) -> Rank {
        let aged = self.served.saturating_sub(since) >= PATIENCE;
        let class = if aged { Class::Interactive } else { standing.class };
        let account = self.accounts.get(&standing.client).copied().unwrap_or_default();
        (class, account.counter, account.present)
    }

    /// How many clients are present, and by how much the highest of their counters is above the
    /// lowest, in units of service by weight.
    #[must_use]
    pub fn spread(&self) -> (usize, u64) {
        let present = self.accounts.values().filter(|account| account.present > 0);
        let (least, most) = present.clone().fold((u64::MAX, 0), |(least, most), account| {
            (account.counter.min(least), account.counter.max(most))
        });
        (present.count(), most.saturating_sub(least) / SCALE)
    }

    /// What a client got so far, in units of service by its weight; lifts included.
    #[must_use]
    pub fn counter(&self, client: Client) -> u64 {
        self.accounts.get(&client).map_or(0, |account| account.counter / SCALE)
    }
}

#[cfg(test)]
mod tests;
