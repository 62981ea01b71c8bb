//! Random schemas whose texts are bounded, so that every walk comes to an end.

use serde_json::{Map, Value, json};

/// A small generator (xorshift64*; Vigna 2016).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as usize % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

const NAMES: [&str; 8] = ["id", "name", "größe", "is_open", "a b", "items", "x-1", "when"];

/// A schema nested at most so deep.
pub(crate) fn schema(chance: &mut Chance, depth: usize) -> Value {
    let kinds = if depth == 0 { 7 } else { 10 };
    match chance.below(kinds) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => string(chance),
        3 => integer(chance),
        4 => {
            let values = [json!("red"), json!("green \"dark\""), json!(7), json!(null), json!("ü")];
            json!({"enum": values[..=chance.below(5)]})
        }
        5 => {
            let values = [json!({"a": [1, 2]}), json!("x\ny"), json!(-3), json!(false)];
            json!({"const": values[chance.below(4)]})
        }
        6 => json!({"type": "number", "minimum": -5, "maximum": chance.below(900)}),
        7 => array(chance, depth),
        8 => json!({"anyOf": [schema(chance, depth - 1), schema(chance, depth - 1)]}),
        _ => object(chance, depth),
    }
}

fn string(chance: &mut Chance) -> Value {
    match chance.below(5) {
        0 => json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"}),
        1 => json!({"type": "string", "format": "date"}),
        2 => json!({"type": "string", "format": "uuid"}),
        _ => {
            let least = chance.below(4);
            json!({"type": "string", "minLength": least, "maxLength": least + chance.below(12)})
        }
    }
}

fn integer(chance: &mut Chance) -> Value {
    let least = chance.below(200) as i64 - 100;
    json!({"type": "integer", "minimum": least, "maximum": least + chance.below(5000) as i64})
}

fn array(chance: &mut Chance, depth: usize) -> Value {
    let least = chance.below(3);
    let most = least + chance.below(3);
    json!({
        "type": "array", "items": schema(chance, depth - 1), "minItems": least, "maxItems": most,
    })
}

fn object(chance: &mut Chance, depth: usize) -> Value {
    let first = chance.below(NAMES.len());
    let names: Vec<&str> =
        (0..1 + chance.below(4)).map(|i| NAMES[(first + i) % NAMES.len()]).collect();
    let mut properties = Map::new();
    for name in &names {
        properties.insert((*name).to_owned(), schema(chance, depth - 1));
    }
    let required: Vec<&str> = names.into_iter().filter(|_| !chance.one_in(3)).collect();
    json!({
        "type": "object", "properties": properties, "required": required,
        "additionalProperties": false,
    })
}
