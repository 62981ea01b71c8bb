use serde_json::json;

use super::*;

fn read_chat(body: &Value) -> Result<Wanted, ApiError> {
    let mut ignored = Ignored::default();
    let body: ChatBody = parse(body.to_string().as_bytes(), &mut ignored)?;
    body.wanted(&Sampling::default(), &mut ignored)
}

fn sources(prompt: Value) -> Vec<Source> {
    let mut ignored = Ignored::default();
    let body = json!({"prompt": prompt}).to_string();
    let body: CompletionsBody = parse(body.as_bytes(), &mut ignored).unwrap();
    body.wanted(&Sampling::default(), &mut ignored).unwrap().sources
}

#[test]
fn a_prompt_may_be_written_in_four_ways() {
    let text = |t: &str| Source::Text(t.to_owned());
    assert_eq!(sources(json!("a")), [text("a")]);
    assert_eq!(sources(json!(["a", "b"])), [text("a"), text("b")]);
    assert_eq!(sources(json!([1, 2])), [Source::Tokens(vec![1, 2])]);
    let both = [Source::Tokens(vec![1, 2]), Source::Tokens(vec![3])];
    assert_eq!(sources(json!([[1, 2], [3]])), both);
}

#[test]
fn messages_become_what_templates_read() {
    let wanted = read_chat(&json!({
        "chat_template_kwargs": {"enable_thinking": true},
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "},
                {"type": "text", "text": "kind."}]},
            {"role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [
                {"id": "7", "type": "function",
                    "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}}]},
            {"role": "tool", "tool_call_id": "7", "content": "ok"},
        ],
    }));
    let [Source::Chat(chat)] = &wanted.unwrap().sources[..] else { panic!("one conversation") };
    assert_eq!(chat.kwargs["enable_thinking"], true);
    let function = json!({"name": "f", "arguments": {"b": 1, "a": [2]}});
    let expected = json!([
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "", "reasoning_content": "hm",
            "tool_calls": [{"id": "7", "type": "function", "function": function}]},
        {"role": "tool", "content": "ok", "tool_call_id": "7"},
    ]);
    assert_eq!(json!(chat.messages), expected);
    // The order of arguments is the model's own.
    assert!(json!(chat.messages).to_string().contains(r#"{"b":1,"a":[2]}"#));
}

#[test]
fn modes_and_depths_go_together_or_are_refused() {
    let drafting = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": ""}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        read_chat(&body).map(|w| (w.drafting.tokens, w.drafting.demanded_by)).ok()
    };
    assert_eq!(drafting(json!({})), Some((Drafts::Tuned, None)));
    assert_eq!(drafting(json!({"draft_tokens": 0})), Some((Drafts::Exactly(0), None)));
    let four = Some((Drafts::Exactly(4), Some("draft_tokens")));
    assert_eq!(drafting(json!({"draft_tokens": 4})), four);
    assert_eq!(drafting(json!({"generation_mode": "ar"})), Some((Drafts::Exactly(0), None)));
    let some = Some((Drafts::AtLeast(1), Some("generation_mode")));
    assert_eq!(drafting(json!({"generation_mode": "mtp"})), some);
    assert_eq!(drafting(json!({"generation_mode": "ar", "draft_tokens": 1})), None);
    assert_eq!(drafting(json!({"generation_mode": "mtp", "draft_tokens": 0})), None);
}

#[test]
fn the_two_names_of_the_limit_must_agree() {
    let limit = |old: Value, new: Value| {
        let messages = json!([{"role": "user", "content": ""}]);
        let body = json!({"messages": messages, "max_tokens": old, "max_completion_tokens": new});
        read_chat(&body).map(|w| w.new_tokens_max).ok()
    };
    assert_eq!(limit(Value::Null, Value::Null), Some(None));
    assert_eq!(limit(json!(5), Value::Null), Some(Some((5, "max_tokens"))));
    assert_eq!(limit(Value::Null, json!(5)), Some(Some((5, "max_completion_tokens"))));
    assert_eq!(limit(json!(5), json!(5)), Some(Some((5, "max_completion_tokens"))));
    assert_eq!(limit(json!(5), json!(6)), None);
}
