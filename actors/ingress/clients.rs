//! Who asks, and what follows from it: whose warm prefixes a request shares, how it stands among
//! others, what its key may still use, and when another attempt is sensible.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use axum::http::{HeaderMap, header};
use mtplx_core::drain::Drain;
use mtplx_core::fairness::{Class, Client, Standing, service};
use mtplx_core::quota::{Exceeded, Meter, may_take};
use mtplx_core::request::{Refusal, Sharing, Usage};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::keys::{Key, Keys, number};
use super::openai::ApiError;
use crate::metrics;

/// How answers end, as metrics name it.
const FINISHED: &str = "finished";
const CANCELLED: &str = "cancelled";
const FAILED: &str = "failed";
const REFUSED: &str = "refused";

/// Longest name of a person behind a trusted key that is looked at.
const PERSON_MAX: usize = 256;

/// Names that are labels of metrics; further keys are counted together. A name that was one stays
/// one, as series do, so this bounds what all files of keys together come to.
const LABELS_MAX: usize = 64;
/// The label of those.
const OTHERS: &str = "other";

/// All that is known of clients.
#[derive(Debug)]
pub(crate) struct Clients {
    keys: RwLock<Keys>,
    anybody: Arc<Key>,
    accounts: Mutex<BTreeMap<String, Account>>,
    /// Answers in the making, by whom they are for; nobody is here who has none.
    present: Mutex<BTreeMap<Client, usize>>,
    labels: Mutex<BTreeSet<String>>,
    drain: Mutex<Drain>,
    began: Instant,
}

/// What a key used.
#[derive(Clone, Debug, Default)]
struct Account {
    meter: Meter,
    used: Used,
}

/// The same as it is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Used {
    /// Answers in the making.
    running: u32,
    /// Answers that came to an end of their own.
    finished: u64,
    /// Those whose client went away.
    cancelled: u64,
    /// Those that broke off.
    failed: u64,
    /// Answers that were refused, for a quota or otherwise.
    refused: u64,
    /// Prompt tokens that were computed.
    prompt_tokens: u64,
    /// Prompt tokens that were warm.
    cached_tokens: u64,
    /// Tokens that were generated.
    generated_tokens: u64,
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    key: Arc<Key>,
    client: Client,
    background: bool,
}

impl Caller {
    /// Who is to be served: the person, where its key may say for whom it asks.
    pub(crate) fn client(&self) -> Client {
        self.client
    }

    /// Answers at once beyond which its key never gets any.
    pub(crate) fn requests_max(&self) -> Option<u32> {
        self.key.quota.hard.requests
    }

    pub(crate) fn sharing(&self) -> Sharing {
        Sharing { tenant: self.key.tenant, background: self.background, ..Sharing::default() }
    }

    /// Its key; none where there are no keys.
    pub(crate) fn key(&self) -> Option<Client> {
        Some(self.key.client).filter(|client| *client != Client::default())
    }

    fn class(&self) -> Class {
        if self.background { Class::Background } else { self.key.class }
    }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is within is numbers, and right whoever panicked.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    pub(crate) fn new(keys: Keys) -> Self {
        Self {
            keys: RwLock::new(keys),
            anybody: Arc::new(Key::of_anybody()),
            accounts: Mutex::default(),
            present: Mutex::default(),
            labels: Mutex::default(),
            drain: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// From now on these are the keys.
    pub(crate) fn replace(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn now_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Whose request this is.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = if keys.is_empty() {
            Arc::clone(&self.anybody)
        } else {
            let sent = sent_key(headers).ok_or(ApiError::NoKey { sent: false })?;
            Arc::clone(keys.find(sent).ok_or(ApiError::NoKey { sent: true })?)
        };
        drop(keys);
        let client = if key.trusted { person(headers, &key) } else { None };
        // As with people: who has no key of its own is whoever stands before the only door.
        let told = key.trusted || key.hash.is_none();
        let background = told && headers.contains_key("x-openwebui-task");
        Ok(Caller { client: client.unwrap_or(key.client), key, background })
    }

    /// An answer is wanted: its bill, unless a quota is used up.
    pub(crate) fn begin(self: &Arc<Self>, caller: &Caller) -> Result<Bill, ApiError> {
        let key = &caller.key;
        let mut accounts = held(&self.accounts);
        let account = accounts.entry(key.name.clone()).or_default();
        let began = account.meter.begin(&key.quota, caller.class(), self.now_s());
        match began {
            Ok(class) => {
                account.used.running = account.meter.requests();
                let (client, group) = (caller.client, key.client);
                let standing = Standing { client, group, weight: key.weight, class };
                *held(&self.present).entry(client).or_default() += 1;
                let (clients, key) = (Arc::clone(self), Arc::clone(key));
                Ok(Bill {
                    clients,
                    key,
                    standing,
                    told: Usage::default(),
                    end: REFUSED,
                    prompt: 0,
                    seated: false,
                    since: Instant::now(),
                    tokens: None,
                })
            }
            Err(exceeded) => {
                drop(accounts);
                self.turned_away(caller);
                Err(self.over(exceeded))
            }
        }
    }

    /// Whether a request would be refused whatever it says, as `free` places are left in the house.
    pub(crate) fn look(&self, caller: &Caller, free: usize) -> Result<(), ApiError> {
        let key = &caller.key;
        let looked = match held(&self.accounts).get(&key.name) {
            Some(account) => account.meter.look(&key.quota, self.now_s()),
            None => Meter::default().look(&key.quota, self.now_s()),
        };
        let refused = match looked {
            Err(exceeded) => self.over(exceeded),
            Ok(()) if free == 0 => {
                let retry_after_s = self.retry_after_s();
                Refusal::Overloaded { retry_after_s }.into()
            }
            Ok(()) => return self.leaves_places(caller.client, (0, 1), free),
        };
        self.turned_away(caller);
        Err(refused)
    }

    /// Whether a client leaves places to others if it takes `more` of the `free` ones, where `own`
    /// of its answers are those that want them.
    pub(crate) fn leaves_places(
        &self,
        client: Client,
        (own, more): (usize, usize),
        free: usize,
    ) -> Result<(), ApiError> {
        if client == Client::default() {
            // Without keys nobody is told apart.
            return Ok(());
        }
        let all = held(&self.present).get(&client).copied().unwrap_or(0);
        let before = all.saturating_sub(own);
        if may_take(before, more, free) || more > free {
            return Ok(());
        }
        Err(self.over(Exceeded::Places { held: before }))
    }

    fn over(&self, exceeded: Exceeded) -> ApiError {
        let retry_after_s = after(exceeded, self.retry_after_s());
        ApiError::OverQuota { exceeded, retry_after_s }
    }

    /// A request of this key was refused before there was a bill.
    fn turned_away(&self, caller: &Caller) {
        let name = &caller.key.name;
        held(&self.accounts).entry(name.clone()).or_default().used.refused += 1;
        metrics::client_request(&self.label(name), REFUSED);
    }

    /// A key's name in metrics.
    fn label(&self, name: &str) -> String {
        let mut labels = held(&self.labels);
        if labels.contains(name) {
            return name.to_owned();
        }
        if labels.len() >= LABELS_MAX {
            return OTHERS.to_owned();
        }
        labels.insert(name.to_owned());
        name.to_owned()
    }

    /// Seconds until one more has left.
    pub(crate) fn retry_after_s(&self) -> u32 {
        held(&self.drain).retry_after_s(1, self.now_s())
    }

    /// What each key used since the start, by name.
    pub(crate) fn used(&self) -> BTreeMap<String, Used> {
        let accounts = held(&self.accounts);
        accounts.iter().map(|(name, account)| (name.clone(), account.used)).collect()
    }
}

/// Nobody is sent away for longer than the drain rate may say; the reason names the rest.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn after(exceeded: Exceeded, drain_s: u32) -> u32 {
    match exceeded {
        Exceeded::Minute { retry_after_s, .. } | Exceeded::Day { retry_after_s, .. } => {
            retry_after_s.ceil().clamp(1.0, 120.0) as u32
        }
        Exceeded::Requests { .. } | Exceeded::Places { .. } => drain_s,
    }
}

fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let bearer = bearer.and_then(|sent| {
        let (scheme, key) = sent.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))
}

/// The person for whom a trusted key asks, as Open WebUI names them.
fn person(headers: &HeaderMap, key: &Key) -> Option<Client> {
    let names = ["x-openwebui-user-id", "x-openwebui-user-email", "x-openwebui-user-name"];
    let sent = names.iter().find_map(|name| headers.get(*name))?.to_str().ok()?;
    let fine = !sent.is_empty() && sent.len() <= PERSON_MAX;
    fine.then(|| Client(number(&["person", &key.name, sent])))
}

/// What one answer costs its key, from its admission to its end.
#[derive(Debug)]
pub(crate) struct Bill {
    clients: Arc<Clients>,
    key: Arc<Key>,
    standing: Standing,
    /// What was charged so far.
    told: Usage,
    /// How it ended; it is refused until it is admitted.
    end: &'static str,
    /// Tokens of its prompt, and whether its row had a slot.
    pub(crate) prompt: usize,
    seated: bool,
    since: Instant,
    /// Its tokens' place among those of the house.
    pub(crate) tokens: Option<OwnedSemaphorePermit>,
}

impl Bill {
    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    /// Its row has a slot.
    pub(crate) fn seated(&mut self) {
        // Where its rows are more than one, what counts is when the first had its slot.
        if !std::mem::replace(&mut self.seated, true) {
            let label = self.clients.label(&self.key.name);
            metrics::client_seated(&label, self.since.elapsed());
        }
    }

    /// Another row goes on, whose prompt is what the one before left.
    pub(crate) fn follows(&mut self) {
        self.told.generated = 0;
    }

    /// Its row has cost so much by now.
    pub(crate) fn charge(&mut self, usage: Usage) {
        let first = self.told.prompt == 0;
        let cached = if first { usage.cached } else { 0 };
        let fed = if first { usage.prompt - usage.cached.min(usage.prompt) } else { 0 };
        let made = usage.generated.saturating_sub(self.told.generated);
        self.told = usage;
        let counts = [("prompt", fed), ("cached", cached), ("generated", made)];
        {
            let mut accounts = held(&self.clients.accounts);
            let account = accounts.entry(self.key.name.clone()).or_default();
            let now_s = self.clients.now_s();
            account.meter.add(&self.key.quota, (fed + made) as u64, now_s);
            account.used.prompt_tokens += fed as u64;
            account.used.cached_tokens += cached as u64;
            account.used.generated_tokens += made as u64;
        }
        let label = self.clients.label(&self.key.name);
        for (kind, tokens) in counts.into_iter().filter(|(_, tokens)| *tokens > 0) {
            metrics::client_tokens(&label, kind, tokens);
        }
        let (served, weight) = (service(fed, made), self.standing.weight.get());
        metrics::client_served(&label, served, weight);
    }

    /// As [`Clients::retry_after_s`].
    pub(crate) fn retry_after_s(&self) -> u32 {
        self.clients.retry_after_s()
    }

    /// It is on its way; if nothing else is heard of it, its client has gone.
    pub(crate) fn admitted(&mut self) {
        self.end = CANCELLED;
    }

    /// It came to an end, of its own or not.
    pub(crate) fn ended(&mut self, well: bool) {
        self.end = if well { FINISHED } else { FAILED };
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if self.seated && self.told.prompt == 0 {
            // Who leaves before the first token has had its prompt fed, if not all of it.
            self.charge(Usage { prompt: self.prompt, ..Usage::default() });
        }
        {
            let mut present = held(&self.clients.present);
            let left = present.get_mut(&self.standing.client).map(|count| {
                *count -= 1;
                *count
            });
            if left == Some(0) {
                present.remove(&self.standing.client);
            }
        }
        let house_is_empty = {
            let mut accounts = held(&self.clients.accounts);
            let account = accounts.entry(self.key.name.clone()).or_default();
            account.meter.end();
            account.used.running = account.meter.requests();
            *match self.end {
                FINISHED => &mut account.used.finished,
                FAILED => &mut account.used.failed,
                CANCELLED => &mut account.used.cancelled,
                _ => &mut account.used.refused,
            } += 1;
            accounts.values().all(|account| account.meter.requests() == 0)
        };
        let mut drain = held(&self.clients.drain);
        if house_is_empty {
            drain.rest();
        } else if self.end != REFUSED {
            drain.ended(self.clients.now_s());
        }
        drop(drain);
        metrics::client_request(&self.clients.label(&self.key.name), self.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labels_of_metrics_are_bounded_whatever_files_of_keys_there_were() {
        let clients = Clients::new(Keys::default());
        let names = |file: usize| (0..40).map(move |i| format!("{file}-{i}"));
        let label = |name: String| clients.label(&name);
        let labels: BTreeSet<String> = (0..4).flat_map(names).map(label).collect();
        assert_eq!(labels.len(), LABELS_MAX + 1);
        assert_eq!(clients.label("0-39"), "0-39", "who had one keeps it");
        assert_eq!(clients.label("3-0"), OTHERS);
    }
}
