use std::time::Instant;

use mtplx_core::RequestId;
use mtplx_core::accept::Rule;
use mtplx_core::batch::{Batch, BatchLimits, Knobs, RowEvent};
use mtplx_core::engine::{Engine, EngineInfo};
use mtplx_core::grammar::{Broken, Constraint, Grammar, Mask};
use mtplx_core::request::{Drafts, Finish, Limits, Request};
use mtplx_core::sample::Sampling;
use mtplx_core::scripted::{Script, Scripted};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::ingress::text::tests::tiny;

mod calls;
pub(crate) mod schemas;

use self::schemas::{Chance, schema};

const VOCAB: usize = 8192;

fn compile(language: Language) -> Result<Compiled, String> {
    compile_after("", language)
}

fn compile_after(written: &str, language: Language) -> Result<Compiled, String> {
    let structure = Structure { written: written.into(), ..Structure::new(language, "test") };
    let text = tiny();
    let compiled = text.grammars(VOCAB).unwrap().compile(&structure);
    compiled.map_err(|refusal| refusal.to_string())
}

fn json_of(schema: Value) -> Language {
    Language::Json { schema, compact: false }
}

fn text_of(tokens: &[Token]) -> String {
    let (mut detokenizer, mut out) = (tiny().detokenizer(), String::new());
    tokens.iter().for_each(|&token| detokenizer.push(token, &mut out));
    out
}

fn tokens_of(text: &str) -> Vec<Token> {
    tiny().raw(text).unwrap().tokens
}

/// Any of the allowed tokens.
fn pick(mask: &Mask, chance: &mut Chance) -> Token {
    mask.tokens().nth(chance.below(mask.len())).unwrap()
}

/// A text by the throw of dice, with the token that ended it, if it came to an end.
fn walk(grammar: &dyn Grammar, chance: &mut Chance, most: usize) -> Vec<Token> {
    let mut text = Vec::new();
    while text.len() < most {
        text.push(pick(&grammar.allowed(&text).unwrap(), chance));
        if tiny().stop_tokens().contains(text.last().unwrap()) {
            break;
        }
    }
    text
}

/// Whether a grammar takes this text, and may end there.
fn takes(grammar: &dyn Grammar, text: &str) -> bool {
    let tokens = tokens_of(text);
    let fits = |n: usize| grammar.allowed(&tokens[..n]).is_ok_and(|m| m.allows(tokens[n]));
    (0..tokens.len()).all(fits) && ends(grammar, &tokens)
}

fn ends(grammar: &dyn Grammar, text: &[Token]) -> bool {
    let mask = grammar.allowed(text).unwrap();
    tiny().stop_tokens().iter().any(|&token| mask.allows(token))
}

fn languages() -> Vec<Language> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "friends": {"type": "array", "items": {"enum": ["Ann", "Bob"]}, "maxItems": 3},
        },
        "required": ["name", "age", "friends"],
        "additionalProperties": false,
    });
    vec![
        json_of(person.clone()),
        Language::Json { schema: person, compact: true },
        json_of(json!({"type": "object"})),
        Language::Regex(r"(\+49|0)[1-9][0-9]{2,5}/[0-9]{3,9}".into()),
        Language::Choice(vec!["yes".into(), "no".into(), "yes, but \"later\"".into()]),
        Language::Lark(
            "start: greeting \" \" /[A-Z][a-z]{2,8}/ \"!\"\ngreeting: \"Hello\" | \"Hi\"".into(),
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_is_allowed_is_a_function_of_the_text_alone(
        which in 0_usize..6,
        seed in any::<u64>(),
        jumps in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..6), 1..12),
    ) {
        let compiled = compile(languages().swap_remove(which)).unwrap();
        let mut chance = Chance::new(seed);
        let long_lived = compiled.open();
        let mut text = walk(&long_lived, &mut chance, 40);
        for (back, forth) in jumps {
            // As drafts fall: back to anywhere, then on with other tokens.
            text.truncate(back.index(text.len() + 1));
            for _ in 0..forth {
                let mask = long_lived.allowed(&text);
                prop_assert_eq!(&mask, &compiled.open().allowed(&text), "after {:?}", text);
                text.push(pick(&mask.unwrap(), &mut chance));
            }
        }
    }
}

#[test]
fn random_walks_end_in_texts_of_the_language() {
    let mut chance = Chance::new(1);
    // A walk through any JSON at all need not end.
    for language in languages().into_iter().filter(|l| *l != json_of(json!({"type": "object"}))) {
        let compiled = compile(language.clone()).unwrap();
        for _ in 0..10 {
            let text = walk(&compiled.open(), &mut chance, 3000);
            let text = text_of(&text);
            match &language {
                Language::Json { schema, .. } => {
                    let value: Value = serde_json::from_str(&text).unwrap();
                    assert!(jsonschema::is_valid(schema, &value), "{value}");
                }
                Language::Choice(choices) => assert!(choices.contains(&text), "{text}"),
                Language::Regex(_) => assert!(text.starts_with("+49") || text.starts_with('0')),
                Language::Lark(_) => assert!(text.starts_with('H') && text.ends_with('!')),
            }
        }
    }
}

#[test]
fn random_schemas_make_valid_json_of_noise() {
    let (mut chance, mut slowest) = (Chance::new(2), 0);
    for i in 0..150 {
        let schema = schema(&mut chance, 3);
        let compiled = compile(json_of(schema.clone())).unwrap_or_else(|e| panic!("{e}: {schema}"));
        let began = Instant::now();
        let tokens = walk(&compiled.open(), &mut chance, 4000);
        slowest = slowest.max(began.elapsed().as_micros() / tokens.len() as u128);
        let text = text_of(&tokens);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(jsonschema::is_valid(&schema, &value), "{i}: {value} of {schema}");
    }
    assert!(slowest < 100_000, "{slowest} us a token");
}

#[test]
fn a_text_may_end_where_it_is_complete_and_nowhere_else() {
    let choice = compile(Language::Choice(vec!["yes".into(), "yes, please".into()])).unwrap();
    let grammar = choice.open();
    assert!(takes(&grammar, "yes") && takes(&grammar, "yes, please"));
    assert!(!takes(&grammar, "yes,") && !takes(&grammar, "") && !takes(&grammar, "no"));
    let all: Vec<Token> = tiny().stop_tokens().iter().copied().collect();
    let done = grammar.allowed(&tokens_of("yes, please")).unwrap();
    assert_eq!(done.tokens().collect::<Vec<_>>(), all, "nothing else may follow");
    let after = [tokens_of("yes"), vec![all[0], 17]].concat();
    assert_eq!(grammar.allowed(&after), Ok(done), "an end is an end");
    assert_eq!(grammar.allowed(&[17, 17]), Err(Broken));
    assert!(takes(&grammar, "yes"), "a text that was never allowed does no harm");
}

#[test]
fn json_has_room_for_spaces_unless_it_is_to_be_compact() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let loose = compile(json_of(schema.clone())).unwrap();
    let compact = compile(Language::Json { schema, compact: true }).unwrap();
    for (text, is_compact) in [("{\"a\":1}", true), ("{\n  \"a\": 1\n}", false)] {
        assert!(takes(&loose.open(), text), "{text}");
        assert_eq!(takes(&compact.open(), text), is_compact, "{text}");
    }
    assert!(!takes(&loose.open(), &format!("{{{}}}", " ".repeat(60))), "but not for ever");
}

#[test]
fn markup_of_the_model_is_no_text() {
    let string = compile(json_of(json!({"type": "string"}))).unwrap().open();
    let opened = string.allowed(&tokens_of("\"")).unwrap();
    let think = tokens_of("<think>");
    assert_eq!(think.len(), 1, "it is a token of its own");
    assert!(!opened.allows(think[0]));
    // It can be spelt, though, and what a grammar demands is spelt so.
    let spelt = compile(Language::Choice(vec!["<think>".into()])).unwrap().open();
    let text = walk(&spelt, &mut Chance::new(1), 20);
    assert!(text.len() > 2 && text_of(&text) == "<think>", "{text:?}");
    let token = compile(Language::Lark("start: <think> \"x\"".into())).unwrap().open();
    assert_eq!(token.allowed(&[]).unwrap().only(), Some(think[0]));
}

#[test]
fn what_must_come_is_forced_in_the_tokens_that_a_model_would_use() {
    let schema = json!({"const": {"capital of France": "Paris"}});
    let grammar = compile(Language::Json { schema, compact: true }).unwrap();
    let constraint = Constraint::new(Arc::new(grammar.open()));
    let forced = constraint.forced(&[], 100);
    let text = "{\"capital of France\":\"Paris\"}";
    assert_eq!(text_of(&forced), text);
    assert_eq!(forced, tokens_of(text));
}

/// A request whose answer a schema describes; every other one is reproducible, some are greedy.
fn request(id: u64, schema: Value) -> Request {
    let grammar = compile(json_of(schema)).unwrap().open();
    let sampling = Sampling {
        temperature: [1.0, 0.6, 0.0][id as usize % 3],
        top_k: [0, 40][id as usize % 2],
        seed: id,
        rule: if id.is_multiple_of(2) { Rule::Ratio } else { Rule::Coupled },
        grammar: Some(Constraint::new(Arc::new(grammar))),
        ..Sampling::default()
    };
    let stop_tokens = Arc::clone(tiny().stop_tokens());
    Request {
        id: RequestId(id),
        prompt: [464, 3181, id as Token % 900].into(),
        sampling,
        limits: Limits { new_tokens_max: 3000, stop_tokens },
        draft_tokens: Drafts::Tuned,
        boundaries: Vec::new(),
        resumed: 0,
        sharing: Default::default(),
        standing: Default::default(),
    }
}

#[test]
fn five_hundred_random_schemas_are_kept_by_a_batch_that_drafts() {
    const REQUESTS: usize = 500;
    let script = Script { head_noise: 2.0, ..Script::default() };
    let info = EngineInfo {
        vocab: VOCAB,
        context_tokens_max: 4096,
        pages_max: 4000,
        ..Scripted::small(script).info().clone()
    };
    let mut engine = Scripted::new(info.clone(), script);
    let mut batch = Batch::new(info, BatchLimits { snapshots_max: 0, chunk_grain: 8 });
    let mut chance = Chance::new(3);
    let (mut schemas, mut texts) = (Vec::new(), vec![Vec::new(); REQUESTS]);
    let (mut ended, mut drafted, mut accepted) = (0, 0, 0);
    while ended < REQUESTS {
        // A house that is always full.
        while schemas.len() < REQUESTS && schemas.len() - ended < 12 {
            let schema = schema(&mut chance, 3);
            batch.admit(request(schemas.len() as u64, schema.clone()), None);
            schemas.push(schema);
        }
        let plan = batch.plan(Knobs::fixed(3, 8, (64, 64)));
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        for (id, event) in batch.settle(&plan, outcome).events {
            let i = id.0 as usize;
            match event {
                RowEvent::Tokens(tokens, _) => texts[i].extend(tokens),
                RowEvent::Finished(finish, usage) => {
                    assert_eq!(finish, Finish::Stop, "{} after {}", schemas[i], text_of(&texts[i]));
                    (drafted, accepted) = (drafted + usage.drafted, accepted + usage.accepted);
                    ended += 1;
                }
                RowEvent::Logprobs(_) | RowEvent::Seated => panic!("nobody asked"),
                RowEvent::Refused(_) | RowEvent::Late => panic!("{event:?}"),
            }
        }
    }
    for (schema, tokens) in schemas.iter().zip(&texts) {
        let text = text_of(tokens);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(jsonschema::is_valid(schema, &value), "{value} of {schema}");
    }
    println!("{REQUESTS} valid; {accepted} of {drafted} drafts accepted");
    assert!(drafted > 1000 && accepted > drafted / 4, "{accepted} of {drafted}");
}
