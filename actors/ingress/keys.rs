//! Keys of clients as they stand in the file: names, rights, hashes. The keys themselves stand
//! nowhere.
//!
//! A key is 256 random bits, so one fast hash is enough to keep it: what slow ones are for, trying
//! likely passwords, has nothing to try here.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use mtplx_core::Tenant;
use mtplx_core::fairness::{Class, Client};
use mtplx_core::quota;
use serde::{Deserialize, Serialize};

/// What every key begins with.
const MARK: &str = "mtplx_";
/// Characters of a key by which people recognise it: few of its 64.
const SHOWN: usize = MARK.len() + 6;
/// Longest name of a key or a tenant.
const NAME_MAX: usize = 64;

/// Of what class a key's requests are.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Urgency {
    /// Somebody waits for them.
    #[default]
    Interactive,
    /// They have time.
    Background,
}

/// What a key may use; what is missing is not bounded.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Tokens in any minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minute_tokens: Option<u64>,
    /// Tokens in any day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day_tokens: Option<u64>,
    /// Answers in the making at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
}

impl From<Bounds> for quota::Bounds {
    fn from(Bounds { minute_tokens, day_tokens, requests }: Bounds) -> Self {
        Self { minute_tokens, day_tokens, requests }
    }
}

/// A key as it is written.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Whose it is; a label of metrics.
    pub name: String,
    /// With whom it shares warm prefixes; without one, with nobody.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Of what class its requests are.
    #[serde(default)]
    pub class: Urgency,
    /// Shares of service beside others.
    #[serde(default = "one")]
    pub weight: NonZeroU32,
    /// Whether it may say for whom it asks, as Open WebUI does.
    #[serde(default)]
    pub trusted: bool,
    /// Beyond these it is served when nobody else wants to be.
    #[serde(default)]
    pub soft: Bounds,
    /// Beyond these it is refused.
    #[serde(default)]
    pub hard: Bounds,
    /// BLAKE3 of the key, as hexadecimal digits.
    pub hash: String,
    /// When it was made.
    #[serde(default)]
    pub created: String,
    /// How the key begins, to recognise it.
    #[serde(default)]
    pub prefix: String,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// A new key, and what of it is written down.
#[must_use]
pub fn new_key(random: [u8; 32]) -> (String, String, String) {
    let key = format!("{MARK}{}", blake3::Hash::from_bytes(random).to_hex());
    let hash = blake3::hash(key.as_bytes()).to_hex().to_string();
    let prefix = key[..SHOWN].to_owned();
    (key, hash, prefix)
}

/// A key that is known.
#[derive(Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) tenant: Tenant,
    pub(crate) client: Client,
    pub(crate) class: Class,
    pub(crate) weight: NonZeroU32,
    pub(crate) trusted: bool,
    pub(crate) quota: quota::Quota,
    pub(crate) hash: Option<blake3::Hash>,
}

impl Key {
    /// Everybody, where there are no keys.
    pub(crate) fn of_anybody() -> Self {
        Self {
            name: "anonymous".into(),
            tenant: Tenant::default(),
            client: Client::default(),
            class: Class::Interactive,
            weight: one(),
            trusted: false,
            quota: quota::Quota::default(),
            hash: None,
        }
    }
}

/// All keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys(Vec<Arc<Key>>);

impl Keys {
    /// Checks what was written.
    ///
    /// # Errors
    /// What is wrong, in words that name the key.
    pub fn new(entries: Vec<Entry>) -> Result<Self, String> {
        let mut names = BTreeSet::new();
        let mut keys = Vec::with_capacity(entries.len());
        for entry in entries {
            let name = entry.name;
            let tenant = entry.tenant.unwrap_or_else(|| name.clone());
            for named in [&name, &tenant] {
                check_name(named)?;
            }
            if !names.insert(name.clone()) {
                return Err(format!("two keys are named {name:?}; give each a name of its own"));
            }
            let hash = blake3::Hash::from_hex(&entry.hash)
                .map_err(|_| format!("the hash of {name:?} is not 64 hexadecimal digits"))?;
            let class = match entry.class {
                Urgency::Interactive => Class::Interactive,
                Urgency::Background => Class::Background,
            };
            let quota = quota::Quota { soft: entry.soft.into(), hard: entry.hard.into() };
            keys.push(Arc::new(Key {
                tenant: Tenant(number(&["tenant", &tenant])),
                client: Client(number(&["client", &name])),
                name,
                class,
                weight: entry.weight,
                trusted: entry.trusted,
                quota,
                hash: Some(hash),
            }));
        }
        Ok(Self(keys))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key that was sent. All are compared, each in constant time as blake3's hashes are, so
    /// that the time tells nothing of them.
    pub(crate) fn find(&self, sent: &[u8]) -> Option<&Arc<Key>> {
        let sent = blake3::hash(sent);
        let mut found = None;
        for key in &self.0 {
            if key.hash == Some(sent) {
                found = Some(key);
            }
        }
        found
    }
}

/// Whether a name may stand in a file, a log and a label.
///
/// # Errors
/// What is expected.
pub fn check_name(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_alphanumeric() || "-_.@ ".contains(c);
    if !name.is_empty() && name.chars().count() <= NAME_MAX && name.chars().all(fine) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no name: it has 1 to {NAME_MAX} letters, digits, spaces or any of - _ . @"
    ))
}

/// A number that stands for these words; never 0, which is everybody's.
pub(crate) fn number(words: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for word in words {
        hasher.update(&(word.len() as u64).to_le_bytes()).update(word.as_bytes());
    }
    let bytes = hasher.finalize();
    let first: [u8; 8] = std::array::from_fn(|i| bytes.as_bytes()[i]);
    u64::from_le_bytes(first).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, random: u8) -> (String, Entry) {
        let (key, hash, prefix) = new_key([random; 32]);
        let (soft, hard) = (Bounds::default(), Bounds::default());
        let (class, weight, created) = (Urgency::default(), one(), String::new());
        let (name, tenant, trusted) = (name.to_owned(), None, false);
        (key, Entry { name, tenant, class, weight, trusted, soft, hard, hash, created, prefix })
    }

    #[test]
    fn a_key_is_found_by_its_whole_text_only() {
        let ((ann, a), (bob, b)) = (entry("ann", 1), entry("bob", 2));
        assert!(ann.starts_with("mtplx_") && ann.len() == 6 + 64 && ann.starts_with(&a.prefix));
        let keys = Keys::new(vec![a, b]).unwrap();
        assert_eq!(keys.find(ann.as_bytes()).unwrap().name, "ann");
        assert_eq!(keys.find(bob.as_bytes()).unwrap().name, "bob");
        for wrong in ["", "mtplx_", &ann[..ann.len() - 1], &format!("{ann} ")] {
            assert_eq!(keys.find(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn tenants_are_told_apart_unless_they_are_named_alike() {
        let (mut a, mut b, c) = (entry("ann", 1).1, entry("bob", 2).1, entry("team", 3).1);
        (a.tenant, b.tenant) = (Some("team".into()), Some("team".into()));
        let keys = Keys::new(vec![a, b, c]).unwrap();
        let [a, b, c] = [0, 1, 2].map(|i| &keys.0[i]);
        assert!(a.tenant == b.tenant && b.tenant == c.tenant && a.tenant != Tenant::default());
        assert!(a.client != b.client && b.client != c.client);
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named() {
        let twice = vec![entry("ann", 1).1, entry("ann", 2).1];
        assert!(Keys::new(twice).unwrap_err().contains("two keys"));
        let wrong = Entry { hash: "x".into(), ..entry("ann", 1).1 };
        assert!(Keys::new(vec![wrong]).unwrap_err().contains("\"ann\""));
        for name in ["", "a\nb", "a\"b", &"x".repeat(65)] {
            assert!(Keys::new(vec![entry(name, 1).1]).is_err(), "{name:?}");
        }
    }
}
