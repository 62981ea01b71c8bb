use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn tools() -> Arc<Tools> {
    let parameters = json!({"type": "object", "properties": {
        "path": {"type": "string"},
        "content": {"type": "string"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "line": {"type": "integer"},
        "deep": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "string"}},
        "map": {"type": "object"},
    }});
    let tool = |name: &str| {
        let function = json!({"name": name, "parameters": parameters});
        json!({"type": "function", "function": function})
    };
    Arc::new(Tools::new(&[tool("write"), tool("read")]))
}

fn manner(begins_thinking: bool) -> Manner {
    Manner { begins_thinking, thinks: true, tools: Some(tools()), ..Manner::default() }
}

/// What the pieces come to, put together.
fn read(manner: &Manner, pieces: &[&str], complete: bool) -> Vec<Delta> {
    let (mut parser, deltas) = Parser::new(manner);
    let mut out = Vec::new();
    let more = pieces.iter().flat_map(|piece| parser.push(piece)).collect::<Vec<_>>();
    let last = parser.finish(complete);
    deltas.into_iter().chain(more).chain(last).for_each(|delta| emit(&mut out, delta));
    out
}

/// All ways to cut a text into two, three, and single characters give this.
fn every_split(manner: &Manner, text: &str, complete: bool) -> Vec<Delta> {
    let whole = read(manner, &[text], complete);
    let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
    for (n, &a) in cuts.iter().enumerate() {
        assert_eq!(read(manner, &[&text[..a], &text[a..]], complete), whole, "{a}: {text}");
        for &b in cuts[n..].iter().step_by(7) {
            let pieces = [&text[..a], &text[a..b], &text[b..]];
            assert_eq!(read(manner, &pieces, complete), whole, "{a}, {b}: {text}");
        }
    }
    let single: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
    assert_eq!(read(manner, &single, complete), whole, "{text}");
    whole
}

/// Text, thought, and calls with parsed arguments.
fn meaning(manner: &Manner, text: &str) -> (String, Option<String>, Vec<(String, Value)>) {
    let mut reply = Reply::default();
    every_split(manner, text, true).iter().for_each(|delta| {
        reply.take(delta);
    });
    let parsed = |json: &str| serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"));
    let calls = reply.calls().map(|(name, json)| (name.to_owned(), parsed(json))).collect();
    (reply.text(), reply.reasoning(), calls)
}

fn call(name: &str, arguments: Value) -> (String, Value) {
    (name.to_owned(), arguments)
}

const CALLS: &str = "Let me see.\n\n<tool_call>\n<function=write>\n<parameter=path>\n/a b\n\
    </parameter>\n<parameter=content>\n  say \"ä\"\n\n</parameter>\n<parameter=line>\n7\n\
    </parameter>\n<parameter=deep>\nTrue\n</parameter>\n<parameter=list>\n[\"x\", \"y\"]\n\
    </parameter>\n\
    <parameter=note>\nnull\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=read>\n\
    </function>\n</tool_call>";

#[test]
fn calls_are_read_and_typed() {
    let (text, thought, calls) = meaning(&manner(false), CALLS);
    assert_eq!((text.as_str(), thought), ("Let me see.", None));
    let first = json!({"path": "/a b", "content": "  say \"ä\"\n", "line": 7, "deep": true,
        "list": ["x", "y"], "note": null});
    assert_eq!(calls, [call("write", first), call("read", json!({}))]);
}

#[test]
fn calls_in_json_are_read() {
    let text = "<tool_call>\n{\"name\": \"write\", \"arguments\": {\"path\": \"a}\\\"<x>\", \
        \"map\": {\"k\": [1, {}]}}}\n</tool_call>\n<tool_call>{\"arguments\": {\"line\": 1}, \
        \"name\": \"read\"}</tool_call> <tool_call>{\"name\": \"read\"}</tool_call>\
        <tool_call>{\"name\": \"read\", \"arguments\": \"{\\\"line\\\": 2}\", \"id\": 5}\
        </tool_call>";
    let (text, _, calls) = meaning(&manner(false), text);
    assert_eq!(text, "");
    let first = json!({"path": "a}\"<x>", "map": {"k": [1, {}]}});
    let calls_expected = [
        call("write", first),
        call("read", json!({"line": 1})),
        call("read", json!({})),
        call("read", json!({"line": 2})),
    ];
    assert_eq!(calls, calls_expected);
}

#[test]
fn arguments_in_json_that_are_no_object_become_one() {
    for (said, read) in [
        ("[1, 2]", json!({"arguments": "[1, 2]"})),
        ("\"Paris\"", json!({"arguments": "Paris"})),
        ("5", json!({"arguments": "5"})),
        ("null", json!({})),
        ("\"\"", json!({})),
        ("\"{\\\"line\\\": 2}\"", json!({"line": 2})),
    ] {
        for text in [
            format!("<tool_call>{{\"name\": \"read\", \"arguments\": {said}}}</tool_call>"),
            format!("<tool_call>{{\"arguments\": {said}, \"name\": \"read\"}}</tool_call>"),
        ] {
            let (_, _, calls) = meaning(&manner(false), &text);
            assert_eq!(calls, [call("read", read.clone())], "{text}");
        }
    }
}

#[test]
fn bare_line_breaks_in_json_are_mended() {
    let text = "<tool_call>{\"name\": \"write\", \"arguments\": {\"content\": \"a\nb\tc\"}}";
    let (_, _, calls) = meaning(&manner(false), text);
    assert_eq!(calls, [call("write", json!({"content": "a\nb\tc"}))]);
}

#[test]
fn thinking_is_told_from_the_answer() {
    let is = |begins, text: &str| {
        let (text, thought, calls) = meaning(&manner(begins), text);
        assert!(calls.is_empty());
        (text, thought.unwrap_or_default())
    };
    let of = |text: &str, thought: &str| (text.to_owned(), thought.to_owned());
    assert_eq!(is(true, "\nHm, < 5.\n</think>\n\n Paris \n"), of("Paris \n", "Hm, < 5."));
    assert_eq!(is(false, "\n<think>\nHm.</think>\nParis"), of("Paris", "Hm."));
    assert_eq!(is(false, " Paris <think>x"), of(" Paris <think>x", ""));
    assert_eq!(is(true, "cut off in \n"), of("", "cut off in \n"));
    assert_eq!(is(false, "an end\n</think>\n\nwithout"), of("an endwithout", ""));
    assert_eq!(is(true, "a</think>b </think> c"), of("b </think> c", "a"));
    assert_eq!(is(true, "</think>\n\nyes"), of("yes", ""));
}

#[test]
fn missing_openers_and_closers_are_forgiven() {
    let path = call("read", json!({"path": "/x"}));
    for text in [
        "<function=read>\n<parameter=path>\n/x\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=read>\n<parameter=path>\n/x\n</parameter>\n</function>",
        "<tool_call>\n<function=read>\n<parameter=path>\n/x\n</parameter>\n",
        "<tool_call>\n<function=read>\n<parameter=path>\n/x\n</function>\n</tool_call>",
        "<tool_call>\n<function=read>\n<parameter=path>\n/x\n</tool_call>",
        "<tool_call>\n<function=read>\n<parameter=path>\n/x",
        "<tool_call>\n<function=read>\n<parameter=path>/x</parameter></function></tool_call>",
        "<tool_call>\n<function=\"read\">\n<parameter=path>/x</parameter></function></tool_call>",
        "<tool_call>{\"name\": \"read\", \"arguments\": {\"path\": \"/x\"}</tool_call>",
        "<tool_call>{\"name\": \"read\", \"arguments\": {\"path\": \"/x\"}}",
        "<tool_call>{\"name\": \"read\", \"arguments\": {\"path\": \"/x",
        "</tool_call>\n<tool_call><function=read><parameter=path>/x</parameter></tool_call>",
    ] {
        assert_eq!(meaning(&manner(false), text).2, std::slice::from_ref(&path), "{text}");
    }
    let two = "<tool_call>\n<function=read>\n<parameter=path>\n/x\n<parameter=line>\n1\n\
        <tool_call>\n<function=read>\n</function>\n";
    let (_, _, calls) = meaning(&manner(false), two);
    assert_eq!(calls.len(), 1, "a value ends at a tag of its own kind: {calls:?}");
}

#[test]
fn a_call_ends_thinking_that_was_not_closed() {
    let text =
        "Let me look.\n<tool_call>\n<function=read>\n</function>\n</tool_call>\n</think>\nok";
    let (text, thought, calls) = meaning(&manner(true), text);
    assert_eq!((text.as_str(), calls.len()), ("ok", 1));
    assert_eq!(thought.unwrap(), "Let me look.\n");
    let talk = "I could write <tool_call> here.</think>No.";
    let (text, thought, calls) = meaning(&manner(true), talk);
    assert_eq!((text.as_str(), calls.len()), ("No.", 0));
    assert_eq!(thought.unwrap(), "I could write <tool_call> here.");
}

#[test]
fn what_is_only_talked_about_is_text() {
    let plain = |text: &str| assert_eq!(meaning(&manner(false), text).0, text);
    plain("the syntax <function=foo> is nice");
    plain("<function=fo");
    plain("if a < b and c </ d");
    plain("trailing space \n ");
    let no_tools = Manner { tools: None, ..manner(false) };
    assert_eq!(meaning(&no_tools, CALLS).0, CALLS);
    let text = "<think>x</think> <tool_call>";
    assert_eq!(meaning(&Manner::default(), text).0, text, "completions are not read");
}

#[test]
fn values_may_hold_anything_but_their_own_end() {
    let body = "if x < y:\n  <parameter=z> </function> </tool_call> {\"a\": 1}\n<b>";
    let text = format!(
        "<tool_call>\n<function=write>\n<parameter=content>\n{body}\n</parameter>\n</function>\n\
         </tool_call>"
    );
    let (_, _, calls) = meaning(&manner(false), &text);
    assert_eq!(calls, [call("write", json!({"content": body}))]);
}

/// A call that writes this.
fn written(body: &str) -> String {
    format!(
        "<tool_call>\n<function=write>\n<parameter=content>\n{body}\n</parameter>\n</function>\n\
         </tool_call>"
    )
}

#[test]
fn a_written_file_may_hold_the_markup_of_calls() {
    for body in [
        "fn a() {}\n</function>\nmore",
        "</function>",
        "\n</function>\n",
        "<call>\n</tool_call>\nmore",
        "</parameter>",
        "<plugin>\n<parameter>\nx\n</parameter>\n</parameters>\n</plugin>",
        "one</parameter>\n\ntwo\n</parameter>\nthree",
        "<parameter=zeal>\n<parameter=content>\n<parameter=",
        "<function=write>\n<parameter=content>\nx\n</parameter",
        "</parameter></parameter></function",
    ] {
        let (text, _, calls) = meaning(&manner(false), &written(body));
        assert_eq!(calls, [call("write", json!({"content": body}))], "{body}");
        assert_eq!(text, "");
    }
    let far = format!("</parameter>{}</function>", " ".repeat(65));
    let calls = meaning(&manner(false), &written(&far)).2;
    assert_eq!(calls, [call("write", json!({"content": far}))]);
}

#[test]
fn the_next_declared_function_ends_a_value_whose_closer_was_forgotten() {
    let two = |next: &str| {
        format!(
            "<tool_call>\n<function=write>\n<parameter=content>\nx\n</function>\n\
             <function={next}>\n<parameter=line>\n3\n</parameter>\n</function>\n</tool_call>"
        )
    };
    let (_, _, calls) = meaning(&manner(false), &two("read"));
    let expected = [call("write", json!({"content": "x"})), call("read", json!({"line": 3}))];
    assert_eq!(calls, expected);
    let (_, _, calls) = meaning(&manner(false), &two("unknown"));
    assert_eq!(calls.len(), 1, "{calls:?}");
    let content = calls[0].1["content"].as_str().unwrap();
    assert!(content.starts_with("x\n</function>\n<function=unknown>"), "{content}");
}

#[test]
fn a_reply_that_ends_with_a_call_told_of_in_a_value_leaves_its_own_call_incomplete() {
    let head = "<tool_call>\n<function=write>\n<parameter=content>\n";
    for (body, complete) in [
        ("To call, write\n<tool_call>\n{}\n</tool_call>", false),
        ("<tool_call>\n{}\n</tool_call>\nor\n<tool_call>\n{}\n</tool_call>", false),
        ("<tool_call>\n{}\n</tool_call>\nis how\n</tool_call>", true),
        ("x\n</tool_call>", true),
    ] {
        let deltas = every_split(&manner(false), &format!("{head}{body}"), true);
        assert_eq!(deltas.last() == Some(&Delta::Called), complete, "{body}: {deltas:?}");
    }
}

#[test]
fn a_written_file_may_tell_of_calls_in_a_row() {
    let body = "They call\n<tool_call>\n{}\n</tool_call>\n<tool_call>\n[]\n</tool_call>\nin turn.";
    let deltas = every_split(&manner(false), &written(body), true);
    assert_eq!(deltas.last(), Some(&Delta::Called));
    let (text, _, calls) = meaning(&manner(false), &written(body));
    assert_eq!(
        (calls.as_slice(), text.as_str()),
        (&[call("write", json!({"content": body}))][..], "")
    );
    // One that breaks off between them is half a file, and nobody's call.
    let head = "<tool_call>\n<function=write>\n<parameter=content>\n";
    let half = format!("{head}They call\n<tool_call>\n{{}}\n</tool_call>\n<tool_call>\n[]");
    let deltas = every_split(&manner(false), &half, false);
    assert_ne!(deltas.last(), Some(&Delta::Called));
}

#[test]
fn what_can_be_read_in_one_way_only_is_mended_in_json() {
    for (said, read) in [
        (
            "{\"deep\": True, \"map\": {\"a\": None, \"b\": [False ,True]}}",
            json!({"deep": true, "map": {"a": null, "b": [false, true]}}),
        ),
        ("{\"line\": 1, }", json!({"line": 1})),
        ("{\"list\": [\"a\", \"b\",\n], \"line\": 1,}", json!({"list": ["a", "b"], "line": 1})),
        ("{\"list\": [\"a\", \"b\"}", json!({"list": ["a", "b"]})),
        ("{\"map\": {\"a\": [{\"b\": 1]}}", json!({"map": {"a": [{"b": 1}]}})),
        (
            "{\"path\": \"a\\d \\'b\\' C:\\users \\u00e4\\\\\\\"\"}",
            json!({"path": "a\\d 'b' C:\\users ä\\\""}),
        ),
        ("{\"path\": \"a \\\n  b\u{1}\"}", json!({"path": "a \\\n  b\u{1}"})),
        ("{\"path\": \"True, None,}\"}", json!({"path": "True, None,}"})),
        ("{\"path\": \"</tool_call> <tool\"}", json!({"path": "</tool_call> <tool"})),
        ("{\"line\": 1}}}]", json!({"line": 1})),
    ] {
        let text =
            format!("<tool_call>{{\"name\": \"read\", \"arguments\": {said}}}</tool_call>ok");
        let (text, _, calls) = meaning(&manner(false), &text);
        assert_eq!(calls, [call("read", read)], "{said}");
        assert_eq!(text, "ok", "{said}");
    }
}

#[test]
fn json_that_is_broken_is_passed_on_as_it_is() {
    for said in [
        "{'line': 1}",
        "{\"path\": \"a \"b\" c\"}",
        "{\"line\" 1}",
        "{\"line\": <x>}",
        "{\"a\": 1]}",
    ] {
        for text in [
            format!("<tool_call>{{\"name\": \"read\", \"arguments\": {said}}}</tool_call>"),
            format!("<tool_call>{{\"arguments\": {said}, \"name\": \"read\"}}</tool_call>"),
        ] {
            let mut reply = Reply::default();
            every_split(&manner(false), &text, true).iter().for_each(|delta| {
                reply.take(delta);
            });
            let calls: Vec<_> = reply.calls().collect();
            assert_eq!(calls, [("read", said)], "{text}");
            assert_eq!(reply.text(), "", "{text}");
        }
    }
}

#[test]
fn a_call_that_was_cut_off_stays_incomplete() {
    for (begun, arguments) in [
        (
            "<tool_call>\n<function=write>\n<parameter=path>\n/a\n</parameter>\n",
            "{\"path\": \"/a\"",
        ),
        ("<tool_call>\n<function=write>\n<parameter=content>\nhalf of", "{\"content\": \"half of"),
        ("<tool_call>\n<function=write>\n<parameter=line>\n12", "{\"line\": "),
        ("<tool_call>{\"name\": \"write\", \"arguments\": {\"path\": \"/a", "{\"path\": \"/a"),
    ] {
        let deltas = every_split(&manner(false), begun, false);
        let args = Delta::Arguments(arguments.to_owned());
        assert_eq!(deltas, [Delta::Call("write".into()), args]);
        let (mut parser, _) = Parser::new(&manner(false));
        parser.push(begun);
        parser.finish(false);
        assert!(!parser.has_called());
    }
}

#[test]
fn arguments_come_as_they_are_generated() {
    let (mut parser, _) = Parser::new(&manner(false));
    parser.push("<tool_call>\n<function=write>\n<parameter=content>\nHello");
    assert_eq!(parser.push(" wor"), [Delta::Arguments(" wor".into())]);
    assert_eq!(parser.push("ld\n"), [Delta::Arguments("ld".into())]);
    assert_eq!(parser.push("more"), [Delta::Arguments("\\nmore".into())]);
    let (mut parser, _) = Parser::new(&manner(false));
    parser.push("<tool_call>{\"name\": \"write\", \"arguments\": {\"content\": \"He");
    assert_eq!(parser.push("llo"), [Delta::Arguments("llo".into())]);
}

#[test]
fn one_call_may_be_all_that_is_wanted() {
    let one = Manner { one_call: true, ..manner(false) };
    let (_, _, calls) = meaning(&one, CALLS);
    assert_eq!(calls.len(), 1);
    let (mut parser, _) = Parser::new(&one);
    parser.push(CALLS);
    assert!(parser.is_over() && parser.has_called());
}

#[test]
fn what_was_put_into_the_models_mouth_is_part_of_its_call() {
    let forced = Manner { prefill: "<tool_call>\n<function=read>\n".into(), ..manner(false) };
    let text = "<parameter=line>\n3\n</parameter>\n</function>\n</tool_call>";
    assert_eq!(meaning(&forced, text).2, [call("read", json!({"line": 3}))]);
    let json = Manner { prefill: "<tool_call>\n{\"name\": \"read\"".into(), ..manner(false) };
    let text = ", \"arguments\": {\"line\": 3}}\n</tool_call>";
    assert_eq!(meaning(&json, text).2, [call("read", json!({"line": 3}))]);
}

#[test]
fn a_second_value_of_one_name_is_dropped() {
    let text = "<tool_call><function=read><parameter=line>1</parameter><parameter=line>2\
        </parameter></function></tool_call>";
    assert_eq!(meaning(&manner(false), text).2, [call("read", json!({"line": 1}))]);
}

/// Pieces of markup, text and nonsense in any order.
fn soup() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<function=read>",
        "<function=",
        "</function>",
        "<parameter=path>",
        "<parameter=line>",
        "<parameter=note>",
        "</parameter>",
        "\n",
        "\n\n",
        " ",
        "<",
        "null",
        "7",
        "ä",
        "x",
        "{",
        "}",
        "\"",
        "{\"name\": \"read\"",
        ", \"arguments\": {",
        "}}",
        "\\",
        "name",
        ">",
        "[1",
        "]",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

/// Characters of any kind, also such as JSON and markup are made of.
fn any_string() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec!['"', '\\', '<', '{', '}', '\n', '\u{7f}', ',']);
    prop::collection::vec(prop_oneof![any::<char>(), special], 0..10)
        .prop_map(|chars| chars.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_the_same_wherever_it_is_cut(
        text in soup(), thinking in any::<bool>(), complete in any::<bool>(), one in any::<bool>(),
    ) {
        let manner = Manner { one_call: one, ..manner(thinking) };
        every_split(&manner, &text, complete);
    }

    #[test]
    fn any_string_survives_a_call(body in "[a-z<>/=\\n\" {}ä]{0,40}") {
        let calls = meaning(&manner(false), &written(&body)).2;
        prop_assert_eq!(calls, [call("write", json!({"content": body}))]);
    }

    #[test]
    fn any_file_survives_a_call_that_is_not_a_call_to_its_end(body in soup()) {
        // What reads like the rest of this call is it; nobody could tell them apart.
        let dense: String = format!("{body}</parameter>").split_whitespace().collect();
        let ends = ["<parameter=", "</function>", "</tool_call>", "<function=", "<tool_call>"];
        prop_assume!(!ends.iter().any(|tag| dense.contains(&format!("</parameter>{tag}"))));
        prop_assume!(!dense.contains("</function></tool_call>"));
        prop_assume!(!dense.contains("</function><function=read>"));
        prop_assume!(!dense.contains("</tool_call><tool_call>"));
        prop_assume!(!["path", "line", "note"].iter().any(|key| {
            body.contains(&format!("\n<parameter={key}>"))
                || body.starts_with(&format!("<parameter={key}>"))
        }));
        let calls = meaning(&manner(false), &written(&body)).2;
        prop_assert_eq!(calls, [call("write", json!({"content": body}))]);
    }

    #[test]
    fn any_json_survives_a_call(
        path in any_string(), list in prop::collection::vec(any_string(), 0..3),
    ) {
        let arguments = json!({"path": path, "list": list, "map": {"k": [true, null, 1.5, {}]}});
        let text = json!({"name": "read", "arguments": arguments}).to_string();
        let text = format!("<tool_call>\n{text}\n</tool_call>");
        prop_assert_eq!(meaning(&manner(false), &text).2, [call("read", arguments)]);
    }
}
