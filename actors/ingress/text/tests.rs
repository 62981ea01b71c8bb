//! The oracles are transformers 5.23 (`transformers.json`: what its `apply_chat_template` makes of
//! conversations with config/models/tiny-q8) and the golden data of tests/golden.

use proptest::prelude::*;
use serde_json::json;

use super::*;

macro_rules! model_file {
    ($name:literal) => {
        include_bytes!(concat!("../../../config/models/tiny-q8/", $name)).as_slice()
    };
}

pub(crate) fn files() -> Files<'static> {
    Files {
        tokenizer: model_file!("tokenizer.json"),
        tokenizer_config: Some(model_file!("tokenizer_config.json")),
        chat_template: Some(model_file!("chat_template.jinja")),
        generation_config: Some(model_file!("generation_config.json")),
        config: Some(model_file!("config.json")),
    }
}

/// The small checkpoint's text side, read once.
pub(crate) fn tiny() -> Arc<Text> {
    static TEXT: std::sync::OnceLock<Arc<Text>> = std::sync::OnceLock::new();
    Arc::clone(TEXT.get_or_init(|| Arc::new(Text::new(&files()).unwrap())))
}

/// Tokens as people read them, special ones too.
pub(crate) fn shown(tokens: &[Token]) -> String {
    tiny().tokenizer.decode(tokens, false).unwrap()
}

fn chat_of(case: &Value) -> Chat {
    Chat {
        messages: case["messages"].as_array().cloned().unwrap_or_default(),
        tools: case["tools"].as_array().cloned().unwrap_or_default(),
        kwargs: case["kwargs"].as_object().cloned().unwrap_or_default(),
        ..Chat::default()
    }
}

fn ids(value: &Value) -> Vec<Token> {
    serde_json::from_value(value.clone()).unwrap()
}

fn references() -> Vec<Value> {
    serde_json::from_str(include_str!("transformers.json")).unwrap()
}

fn decode(text: &Text, tokens: &[Token]) -> String {
    let (mut detokenizer, mut out) = (text.detokenizer(), String::new());
    for &token in tokens {
        detokenizer.push(token, &mut out);
    }
    out
}

/// One tensor of integers out of a safetensors file.
fn tensor(name: &str) -> Vec<Token> {
    let file = include_bytes!("../../../tests/golden/golden.safetensors");
    let header = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
    let info: Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    assert_eq!(info[name]["dtype"], "U16");
    let at = |i: usize| usize::try_from(info[name]["data_offsets"][i].as_u64().unwrap()).unwrap();
    let data = &file[8 + header..][at(0)..at(1)];
    data.chunks(2).map(|c| u16::from_le_bytes(c.try_into().unwrap()).into()).collect()
}

#[test]
fn golden_prompts_have_the_golden_tokens() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../tests/golden/golden.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let prompt = if case["messages"].is_null() {
            tiny().raw(case["text"].as_str().unwrap()).unwrap()
        } else {
            tiny().chat(&chat_of(case)).unwrap()
        };
        assert_eq!(prompt.tokens, tensor(&format!("{name}.ids")), "{name}");
    }
}

#[test]
fn conversations_have_the_tokens_that_transformers_gives_them() {
    for case in references() {
        let prompt = tiny().chat(&chat_of(&case)).unwrap();
        assert_eq!(prompt.tokens, ids(&case["ids"]), "{}", case["name"]);
        assert_eq!(decode(&tiny(), &prompt.tokens), case["decoded"].as_str().unwrap());
    }
}

#[test]
fn the_history_before_the_assistants_turn_is_a_boundary() {
    for case in references() {
        let prompt = tiny().chat(&chat_of(&case)).unwrap();
        let history = usize::try_from(case["history_tokens"].as_u64().unwrap()).unwrap();
        assert_eq!(prompt.boundaries.last(), Some(&history), "{}", case["name"]);
        assert!(prompt.boundaries.is_sorted());
    }
}

#[test]
fn a_long_system_prompt_ends_at_a_boundary() {
    let prompt = |system: &str, user: &str| {
        let chat = json!({"messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": user},
        ]});
        tiny().chat(&chat_of(&chat)).unwrap()
    };
    let long = "You answer in verse. ".repeat(20);
    let (one, two) = (prompt(&long, "Hello"), prompt(&long, "\u{1}\u{2}"));
    assert_eq!(one.boundaries.len(), 2);
    let end = one.boundaries[0];
    assert_eq!(one.boundaries[0], two.boundaries[0]);
    assert_eq!(one.tokens[..end], two.tokens[..end]);
    assert!(decode(&tiny(), &one.tokens[..end]).ends_with("verse.\n"));
    assert_eq!(prompt("Short.", "Hello").boundaries.len(), 1);
}

#[test]
fn stop_tokens_are_all_that_any_file_names() {
    assert_eq!(tiny().stop_tokens().iter().copied().collect::<Vec<_>>(), [8160, 8162]);
    let only = |files: Files<'static>| Text::new(&files).map(|t| t.stop_tokens().len());
    let bare = Files { tokenizer: files().tokenizer, ..Files::default() };
    assert!(matches!(only(bare), Err(TextError::Endless)));
    assert_eq!(only(Files { config: files().config, ..bare }).unwrap(), 2);
    assert_eq!(only(Files { tokenizer_config: files().tokenizer_config, ..bare }).unwrap(), 1);
}

#[test]
fn sampling_defaults_are_the_checkpoints() {
    let defaults = tiny().defaults().clone();
    assert_eq!((defaults.temperature, defaults.top_p, defaults.top_k), (0.6, 0.95, 20));
    let greedy = br#"{"do_sample": false, "temperature": 0.6}"#;
    let text = Text::new(&Files { generation_config: Some(greedy), ..files() }).unwrap();
    assert_eq!(text.defaults().temperature, 0.0);
}

#[test]
fn a_template_within_the_tokenizers_config_serves_too() {
    let text = Text::new(&Files { chat_template: None, ..files() }).unwrap();
    let case = &references()[1];
    assert_eq!(text.chat(&chat_of(case)).unwrap().tokens, ids(&case["ids"]));
}

#[test]
fn without_a_template_there_is_no_chat() {
    let files = Files { chat_template: None, tokenizer_config: None, ..files() };
    let refusal = Text::new(&files).unwrap().chat(&chat_of(&references()[0])).unwrap_err();
    assert!(refusal.to_string().contains("/v1/completions"));
}

#[test]
fn what_the_template_raises_reaches_the_client() {
    let template = b"{%- if strict -%}{{ raise_exception('No user query found.') }}{%- endif -%}";
    let text = Text::new(&Files { chat_template: Some(template), ..files() }).unwrap();
    let chat = chat_of(&json!({"messages": [], "kwargs": {"strict": true}}));
    let Err(Refusal::Invalid { field, reason }) = text.chat(&chat) else { panic!("refused") };
    assert_eq!(field, "messages");
    assert!(reason.contains("No user query found."), "{reason}");
}

#[test]
fn broken_files_are_named() {
    let named = |files: Files<'static>| match Text::new(&files) {
        Err(TextError::File { file, .. }) => file,
        Err(TextError::Endless) => "endless",
        Ok(_) => "fine",
    };
    assert_eq!(named(Files { tokenizer: b"{}", ..files() }), "tokenizer.json");
    let prefixed = br#"{"decoder": {"type": "ByteLevel"},
        "model": {"continuing_subword_prefix": "\u00e9", "vocab": {}, "merges": []}}"#;
    assert_eq!(named(Files { tokenizer: prefixed, ..files() }), "tokenizer.json");
    assert_eq!(named(Files { config: Some(b"["), ..files() }), "config.json");
    let hot = Some(br#"{"temperature": -1}"#.as_slice());
    assert_eq!(named(Files { generation_config: hot, ..files() }), "generation_config.json");
    assert_eq!(named(Files { chat_template: Some(b"{% if %}"), ..files() }), "chat_template.jinja");
    assert_eq!(named(files()), "fine");
}

#[test]
fn templates_read_python() {
    let template = br#"
{%- set parts = 'a,b,c'.split(',') -%}
{{- parts[::-1] | join('') }} {{ 'x'.startswith('x') }} {{ none }} {{ {'k': 1.5} | tojson }}
{%- for k, v in {'b': 1, 'a': true}.items() %} {{ k }}={{ v }}{% endfor %} {{ strftime_now('%Y')[:2] }}
{%- if bos_token is defined %} bos{% endif %} {{ eos_token }} {{ 'ok' if tools is not defined }}"#;
    let text = Text::new(&Files { chat_template: Some(template), ..files() }).unwrap();
    let prompt = text.chat(&Chat::default()).unwrap();
    let shown = decode(&text, &prompt.tokens);
    assert_eq!(shown, "cba True None {\"k\": 1.5} b=1 a=True 20  ok");
}

/// A text side with a template like the published ones.
pub(crate) fn published() -> Arc<Text> {
    let template = include_bytes!("published.jinja");
    Arc::new(Text::new(&Files { chat_template: Some(template), ..files() }).unwrap())
}

#[test]
fn published_templates_are_understood() {
    let said = json!({"tools": [{"type": "function", "function": {"name": "f"}}], "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Go"}]},
        {"role": "assistant", "content": "<think>\nold\n</think>\n\nDone."},
        {"role": "user", "content": "Again"},
        {"role": "assistant", "content": "", "reasoning_content": "new", "tool_calls": [
            {"function": {"name": "f",
                "arguments": {"a": [1, "x"], "b": true, "c": "t", "d": null}}},
            {"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "one"}, {"role": "tool", "content": "two"}]});
    let mut chat = chat_of(&said);
    let prompt = published().chat(&chat).unwrap();
    let text = shown(&prompt.tokens);
    for part in [
        "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\n</tools>",
        "</tool_call>\n\nBe kind.<|im_end|>\n<|im_start|>user\nGo<|im_end|>",
        "assistant\nDone.<|im_end|>",
        "assistant\n<think>\nnew\n</think>\n\n<tool_call>\n<function=f>\n",
        "<function=f>\n<parameter=a>\n[1, \"x\"]\n</parameter>\n<parameter=b>",
        "<parameter=b>\nTrue\n</parameter>\n<parameter=c>\nt\n</parameter>\n<parameter=d>\nNone\n",
        "</tool_call>\n<tool_call>\n<function=f>\n</function>\n</tool_call><|im_end|>",
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(prompt.thinking && text.ends_with("<|im_start|>assistant\n<think>\n"), "{text}");
    assert_eq!(prompt.boundaries.len(), 2);
    chat.kwargs.insert("enable_thinking".into(), false.into());
    assert!(!published().chat(&chat).unwrap().thinking);
    let refusal = published().chat(&chat_of(&json!({"messages": []}))).unwrap_err();
    assert!(refusal.to_string().contains("No messages provided."));
}

#[test]
fn what_a_system_says_late_is_said_by_the_user_where_templates_want_it_first() {
    let chat = chat_of(&json!({"messages": [
        {"role": "system", "content": "One."}, {"role": "system", "content": "Two."},
        {"role": "user", "content": "Hi"}, {"role": "system", "content": "Late."}]}));
    let text = shown(&published().chat(&chat).unwrap().tokens);
    let expected = "system\nOne.\n\nTwo.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
        <|im_start|>user\nLate.<|im_end|>";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn whether_it_thinks_is_read_from_the_prompt_and_not_from_what_was_said() {
    let chat = chat_of(&json!({"messages": [{"role": "user", "content": "What is <think>"}],
        "kwargs": {"enable_thinking": false}}));
    assert!(!published().chat(&chat).unwrap().thinking);
    assert!(!tiny().chat(&Chat { kwargs: Map::new(), ..chat.clone() }).unwrap().thinking);
    assert!(published().chat(&Chat { kwargs: Map::new(), ..chat }).unwrap().thinking);
}

#[test]
fn characters_are_never_split() {
    let prompt = tiny().raw("aé你👩\u{200d}👧 z").unwrap();
    let (mut detokenizer, mut out) = (tiny().detokenizer(), String::new());
    for &token in &prompt.tokens {
        detokenizer.push(token, &mut out);
        assert!(!out.contains(char::REPLACEMENT_CHARACTER), "{out}");
    }
    assert_eq!(out, "aé你👩\u{200d}👧 z");
}

#[test]
fn special_tokens_are_no_text_and_others_are_themselves() {
    assert_eq!(decode(&tiny(), &[8161, 8184, 8162, 8185, 8186, 8160]), "<think></think>");
    assert_eq!(decode(&tiny(), &[8191, 8192, u32::MAX]), "", "unknown ids are no text");
    assert_eq!(tiny().special("<|im_end|>"), Some(8162));
    assert_eq!(tiny().special("<think>"), None);
}

proptest! {
    #[test]
    fn text_comes_back_from_its_tokens(text in "\\PC{0,40}") {
        // The tokenizer normalizes to NFC; what is normalized already comes back as it was.
        let once = decode(&tiny(), &tiny().raw(&text).unwrap().tokens);
        let twice = decode(&tiny(), &tiny().raw(&once).unwrap().tokens);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn any_tokens_come_out_as_the_whole_would(tokens in prop::collection::vec(0u32..8192, 0..40)) {
        let whole = tiny().tokenizer.decode(&tokens, true).unwrap();
        let ours = decode(&tiny(), &tokens);
        // What the whole shows as one U+FFFD at its end is a character that never ended.
        let tail = whole.strip_prefix(ours.as_str());
        prop_assert!(tail.is_some_and(|t| t.is_empty() || t == "\u{fffd}"), "{whole:?} {ours:?}");
    }
}
