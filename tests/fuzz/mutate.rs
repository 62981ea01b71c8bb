//! Mutations: of bytes, and of JSON by its structure.

use serde_json::{Map, Value, json};

use crate::random::Random;

/// Longest input.
const BYTES_MAX: usize = 16 * 1024;
/// Mutations of one input at most.
const MUTATIONS_MAX: usize = 4;

/// Inputs to begin with.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    seeds: Vec<Vec<u8>>,
    /// Their meaning, of those that are JSON.
    values: Vec<Value>,
    /// Words that mean something to the target.
    words: Vec<Vec<u8>>,
}

/// Words that mean something to everybody.
const WORDS: [&[u8]; 14] = [
    b"\0",
    b"\xff\xfe",
    b"\xf0\x9f\x98\x80",
    b"\"",
    b"\\",
    b"{",
    b"[",
    b"]",
    b"}",
    b"\n",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"null",
];

/// Numbers at which things go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    127,
    128,
    255,
    65_535,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    u64::MAX / 2,
    u64::MAX,
];

impl Corpus {
    /// Of these inputs; `words` are put into some of their mutations.
    pub fn new<T: AsRef<[u8]>>(seeds: impl IntoIterator<Item = T>, words: &[&str]) -> Self {
        let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|seed| seed.as_ref().to_vec()).collect();
        let values = seeds.iter().filter_map(|seed| serde_json::from_slice(seed).ok()).collect();
        let words = words.iter().map(|word| word.as_bytes()).chain(WORDS);
        Self { seeds, values, words: words.map(<[u8]>::to_vec).collect() }
    }

    pub(crate) fn seeds(&self) -> impl Iterator<Item = &[u8]> {
        self.seeds.iter().map(Vec::as_slice)
    }

    /// One of them, changed.
    pub(crate) fn mutated(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = if !self.values.is_empty() && !random.once_in(3) {
            let mut value = random.pick(&self.values).clone();
            for _ in 0..=random.below(MUTATIONS_MAX) {
                self.change_value(&mut value, random);
            }
            value.to_string().into_bytes()
        } else {
            let mut bytes = random.pick(&self.seeds).clone();
            for _ in 0..=random.below(MUTATIONS_MAX) {
                self.change_bytes(&mut bytes, random);
            }
            bytes
        };
        if random.once_in(16) {
            self.change_bytes(&mut bytes, random);
        }
        bytes.truncate(BYTES_MAX);
        bytes
    }

    fn change_bytes(&self, bytes: &mut Vec<u8>, random: &mut Random) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(32)).min(bytes.len());
        match random.below(10) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again: Vec<u8> = bytes[at..end].repeat(1 + random.below(20));
                bytes.splice(at..at, again);
            }
            5 => {
                let other = random.pick(&self.seeds);
                let (a, b) = (random.below(other.len() + 1), random.below(other.len() + 1));
                bytes.splice(at..end, other[a.min(b)..a.max(b)].iter().copied());
            }
            6 => {
                let number = random.pick(&NUMBERS).to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)];
                bytes.splice(at..(at + width).min(bytes.len()), number[..width].iter().copied());
            }
            7 => {
                let number = random.pick(&NUMBERS).to_string();
                bytes.splice(at..end.min(at + 2), number.into_bytes());
            }
            _ => {
                let word = random.pick(&self.words).clone();
                let end = if random.once_in(2) { at } else { end };
                bytes.splice(at..end, word);
            }
        }
        bytes.truncate(BYTES_MAX);
    }

    fn change_value(&self, value: &mut Value, random: &mut Random) {
        let count = size(value);
        let mut at = random.below(count);
        let other = {
            let other = random.pick(&self.values);
            let mut at = random.below(size(other));
            part(other, &mut at).cloned().unwrap_or_default()
        };
        let Some(place) = part_mut(value, &mut at) else { return };
        match random.below(9) {
            0..3 => *place = self.odd(random),
            3..5 => *place = other,
            5 => match place {
                Value::Object(map) => remove(map, random),
                Value::Array(items) if !items.is_empty() => {
                    drop(items.remove(random.below(items.len())));
                }
                Value::Array(_)
                | Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_) => *place = Value::Null,
            },
            6 => match place {
                Value::Object(map) => {
                    let word =
                        String::from_utf8_lossy(random.pick::<Vec<u8>>(&self.words).as_slice())
                            .into_owned();
                    map.insert(word, other);
                }
                Value::Array(items) => {
                    let times = 1 + random.below(30);
                    items.extend(std::iter::repeat_n(other, times));
                }
                Value::String(text) => self.change_text(text, random),
                Value::Null | Value::Bool(_) | Value::Number(_) => *place = json!([other]),
            },
            7 => {
                let mut deep = std::mem::take(place);
                for _ in 0..[1, 3, 40, 126, 300][random.below(5)] {
                    deep = if random.once_in(2) { json!([deep]) } else { json!({"a": deep}) };
                }
                *place = deep;
            }
            _ => {
                if let Value::String(text) = place {
                    self.change_text(text, random);
                } else {
                    *place = self.odd(random);
                }
            }
        }
    }

    fn change_text(&self, text: &mut String, random: &mut Random) {
        let mut bytes = std::mem::take(text).into_bytes();
        self.change_bytes(&mut bytes, random);
        *text = String::from_utf8_lossy(&bytes).into_owned();
    }

    /// A value that nobody expects.
    fn odd(&self, random: &mut Random) -> Value {
        let number = *random.pick(&NUMBERS);
        match random.below(10) {
            0 => Value::Null,
            1 => random.once_in(2).into(),
            2 => number.into(),
            3 => (-((number >> 1) as i64)).into(),
            4 => json!(f64::from_bits(random.draw())),
            5 => json!([1e308, -1e308, 1e-320, 0.1, -0.0][random.below(5)]),
            6 => String::new().into(),
            7 => "\u{1f600}a".repeat(random.below(600)).into(),
            8 => json!([]),
            _ => String::from_utf8_lossy(random.pick::<Vec<u8>>(&self.words).as_slice()).into(),
        }
    }
}

fn remove(map: &mut Map<String, Value>, random: &mut Random) {
    let key = map.keys().nth(random.below(map.len())).cloned();
    key.iter().for_each(|key| drop(map.remove(key)));
}

/// Values within, itself included.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(map) => map.values().map(size).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0_usize,
    }
}

/// The value at this place, in order.
fn part<'a>(value: &'a Value, at: &mut usize) -> Option<&'a Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter().find_map(|item| part(item, at)),
        Value::Object(map) => map.values().find_map(|item| part(item, at)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn part_mut<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| part_mut(item, at)),
        Value::Object(map) => map.values_mut().find_map(|item| part_mut(item, at)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_a_function_of_seed_and_number_and_hardly_two_are_alike() {
        let corpus = Corpus::new([r#"{"a": [1, "two", null], "b": {"c": true}}"#], &["a"]);
        let of = |number| corpus.mutated(&mut Random::new(3, number));
        assert_eq!(of(7), of(7));
        let all: std::collections::BTreeSet<_> = (0..1000).map(of).collect();
        assert!(all.len() > 700, "{}", all.len());
        assert!(all.iter().all(|input| input.len() <= BYTES_MAX));
        let json = all.iter().filter(|i| serde_json::from_slice::<Value>(i).is_ok()).count();
        assert!(json > 400, "{json} are JSON");
    }

    #[test]
    fn every_value_has_its_place() {
        let value = json!({"a": [1, {"b": 2}], "c": "d"});
        assert_eq!(size(&value), 6);
        let at = |mut n| part(&value, &mut n).cloned();
        assert_eq!(at(2), Some(json!(1)));
        assert_eq!(at(4), Some(json!(2)));
        assert_eq!((at(5), at(6)), (Some(json!("d")), None));
    }
}
