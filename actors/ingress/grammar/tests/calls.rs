//! Calls that are demanded: what is theirs is taken, what is not is refused, noise makes calls that
//! can be read.

use serde_json::{Value, json};

use super::*;
use crate::ingress::grammar::calls::{Calls, Form};

fn tools() -> Vec<Value> {
    let weather = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "unit": {"enum": ["C", "F"]},
            "where": {"$ref": "#/$defs/point"},
        },
        "required": ["city", "unit"],
        "$defs": {"point": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
        "additionalProperties": false,
    });
    let function = |name: &str, parameters: Value| {
        let function = json!({"name": name, "parameters": parameters});
        json!({"type": "function", "function": function})
    };
    vec![
        function("get_weather", weather),
        json!({"type": "function", "function": {"name": "stop"}}),
        function("a \"b\"", json!({"type": "object", "properties": {}})),
    ]
}

fn demanded(form: Form, tools: &[Value], one: bool) -> Language {
    Calls { form, tools, one, marks: true }.language().unwrap()
}

fn call(function: &str) -> String {
    format!("<tool_call>\n{function}\n</tool_call>")
}

const PARIS: &str = "<function=get_weather>\n<parameter=city>\nSt.\nDenis </p\n</parameter>\n\
                     <parameter=unit>\nC\n</parameter>\n</function>";

#[test]
fn calls_in_tags_are_taken_by_their_declarations() {
    let tools = tools();
    let any = compile(demanded(Form::Tags, &tools, false)).unwrap();
    let one = compile(demanded(Form::Tags, &tools, true)).unwrap();
    let all = "<function=get_weather>\n<parameter=city>\n\n</parameter>\n<parameter=days>\n3\n\
               </parameter>\n<parameter=unit>\nF\n</parameter>\n<parameter=where>\n[true, false]\n\
               </parameter>\n</function>";
    let none = "<function=stop>\n</function>";
    for right in [PARIS, all, none, "<function=a \"b\">\n</function>"] {
        assert!(takes(&any.open(), &call(right)), "{right}");
        assert!(takes(&one.open(), &call(right)), "{right}");
    }
    let two = format!("{}\n{}", call(PARIS), call(none));
    assert!(takes(&any.open(), &two) && !takes(&one.open(), &two));
    for wrong in [
        "<function=get_wether>\n</function>",
        "<function=get_weather>\n</function>",
        "<function=stop>\n<parameter=city>\nParis\n</parameter>\n</function>",
        &all.replace("3", "30"),
        &all.replace("F", "K"),
        &all.replace("true", "1"),
    ] {
        assert!(!takes(&any.open(), &call(wrong)), "{wrong}");
    }
    assert!(!takes(&any.open(), "I would rather not."));
}

#[test]
fn values_that_may_be_strings_are_written_without_quotes() {
    // `Optional[str]` as pydantic writes it, and its kin.
    let optional = json!({"anyOf": [{"type": "string"}, {"type": "null"}], "default": null,
        "title": "Note"});
    let unit = json!({"$ref": "#/$defs/Unit"});
    let maybe_unit = json!({"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]});
    for (schema, right, wrong) in [
        (optional, &["a \"b\"", "null", ""][..], &[][..]),
        (json!({"type": ["string", "null"]}), &["Paris", "null"], &[]),
        (json!({"type": ["string", "integer"]}), &["Paris", "5"], &[]),
        (unit, &["C", "F"], &["\"C\"", "K"]),
        (maybe_unit, &["C", "null"], &["\"C\"", "K", ""]),
        (json!({"const": "now"}), &["now"], &["\"now\"", "then"]),
        (json!({"enum": ["all", 1, null]}), &["all", "1", "null"], &["\"all\"", "2"]),
        (json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}), &["5", "null"], &["five"]),
    ] {
        let parameters = json!({"type": "object", "properties": {"x": schema}, "required": ["x"],
            "$defs": {"Unit": {"enum": ["C", "F"], "type": "string", "title": "Unit"}}});
        let function = json!({"name": "f", "parameters": parameters});
        let tools = [json!({"type": "function", "function": function})];
        let grammar = compile(demanded(Form::Tags, &tools, true)).unwrap();
        let said =
            |x: &str| call(&format!("<function=f>\n<parameter=x>\n{x}\n</parameter>\n</function>"));
        for x in right {
            assert!(takes(&grammar.open(), &said(x)), "{x} of {parameters}");
        }
        for x in wrong {
            assert!(!takes(&grammar.open(), &said(x)), "{x} of {parameters}");
        }
    }
}

#[test]
fn calls_in_json_are_taken_by_their_declarations() {
    let tools = tools();
    let any = compile(demanded(Form::Json, &tools, false)).unwrap();
    let right = r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "C"}}"#;
    for right in [
        right,
        r#"{"name": "stop", "arguments": {}}"#,
        r#"{"name": "stop", "arguments": {"free": [1]}}"#,
        r#"{"name": "a \"b\"", "arguments": {}}"#,
    ] {
        assert!(takes(&any.open(), &call(right)), "{right}");
    }
    for wrong in [right.replace("unit", "unity"), right.replace("get_weather", "get")] {
        assert!(!takes(&any.open(), &call(&wrong)), "{wrong}");
    }
    let named = compile(demanded(Form::Json, &tools[1..2], true)).unwrap();
    assert!(!takes(&named.open(), &call(right)), "another was named");
}

#[test]
fn what_the_prompt_holds_already_is_not_written_again() {
    let tools = tools();
    let language = demanded(Form::Tags, &tools, true);
    let written = "<tool_call>\n<function=";
    let rest = compile_after(written, language.clone()).unwrap();
    let whole = call(PARIS);
    assert!(takes(&rest.open(), whole.strip_prefix(written).unwrap()));
    assert!(!takes(&rest.open(), &whole));
    assert!(compile_after("<tool_call>\n<function=no", language).is_err());
}

#[test]
fn the_marks_are_tokens_where_the_model_has_them() {
    let tools = tools();
    let open = tokens_of("<tool_call>");
    let marked = compile(demanded(Form::Tags, &tools, true)).unwrap().open();
    assert_eq!(marked.allowed(&[]).unwrap().only(), Some(open[0]));
    let spelt =
        Calls { form: Form::Tags, tools: &tools, one: true, marks: false }.language().unwrap();
    let spelt = compile(spelt).unwrap().open();
    assert!(!spelt.allowed(&[]).unwrap().allows(open[0]));
}

#[test]
fn noise_makes_calls_that_can_be_read() {
    let mut chance = Chance::new(5);
    let tools = tools();
    // Text without an end would be walked for long.
    let mut bounded = tools.clone();
    bounded[0]["function"]["parameters"]["properties"]["city"]["maxLength"] = json!(8);
    let compiled = compile(demanded(Form::Json, &bounded[..1], true)).unwrap();
    for _ in 0..20 {
        let text = text_of(&walk(&compiled.open(), &mut chance, 3000));
        let inner =
            text.strip_prefix("<tool_call>\n").and_then(|t| t.strip_suffix("\n</tool_call>"));
        let value: Value = serde_json::from_str(inner.unwrap()).unwrap();
        let schema = &bounded[0]["function"]["parameters"];
        assert!(jsonschema::is_valid(schema, &value["arguments"]), "{value}");
    }
}

#[test]
fn only_the_definitions_that_a_parameter_refers_to_are_written_for_it() {
    let long = "x".repeat(100_000);
    let properties: Value =
        (0..50).map(|i| (format!("p{i}"), json!({"$ref": "#/$defs/a"}))).collect();
    let tool = |properties: &Value| {
        let parameters = json!({"type": "object", "properties": properties, "$defs": {
            "a": {"type": "array", "items": {"$ref": "#/$defs/b"}, "maxItems": 2},
            "b": {"type": "integer"},
            "unused": {"const": long},
        }});
        json!({"function": {"name": "f", "parameters": parameters}})
    };
    let tools = [tool(&properties)];
    let language = demanded(Form::Tags, &tools, true);
    assert!(matches!(&language, Language::Lark(lark) if lark.len() < 20_000));
    let grammar = compile(language).unwrap();
    let said =
        |x: &str| call(&format!("<function=f>\n<parameter=p3>\n{x}\n</parameter>\n</function>"));
    assert!(takes(&grammar.open(), &said("[1, 2]")) && !takes(&grammar.open(), &said("[true]")));
}

#[test]
fn a_short_body_of_many_references_comes_to_no_endless_text() {
    let long = "x".repeat(100_000);
    for (count, of) in [
        (5000, json!({"type": "array", "items": {"$ref": "#/$defs/a"}})),
        (5000, json!({"$ref": "#/$defs/a"})),
        (50, json!({"anyOf": vec![json!({"$ref": "#/$defs/a"}); 900]})),
    ] {
        let properties: Value = (0..count).map(|i| (format!("p{i}"), of.clone())).collect();
        let parameters = json!({"properties": properties, "$defs": {"a": {"enum": [long]}}});
        let tools = [json!({"function": {"name": "f", "parameters": parameters}})];
        let calls = Calls { form: Form::Tags, tools: &tools, one: true, marks: true };
        let began = std::time::Instant::now();
        let refused = calls.language().unwrap_err();
        assert!(matches!(refused, Refusal::Invalid { field: "tools", .. }), "{refused:?}");
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn equal_structures_asked_for_at_once_are_compiled_once() {
    let structure = Structure::new(demanded(Form::Tags, &tools(), true), "tool_choice");
    let key = Cache::key(&structure, 8192);
    let (cache, compiled) = (Cache::new(), std::sync::atomic::AtomicUsize::new(0));
    let ask = async || {
        let _alone = cache.alone(key).await;
        if cache.get(&key).is_none() {
            // Long enough for the others to come.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            compiled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            cache.keep(key, tiny().grammars(VOCAB).unwrap().compile(&structure).unwrap());
        }
    };
    tokio::join!(ask(), ask(), ask(), ask(), ask(), ask(), ask(), ask());
    assert_eq!(compiled.into_inner(), 1);
}
