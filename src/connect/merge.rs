//! Settings laid into what stands in a client's file. What is somebody else's stays, to the word
//! and in its order; what cannot be read for certain is refused.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use toml_edit::{DocumentMut, Item, Table};

use super::clients::Form;

/// The file as it is to be.
pub(super) fn merged(old: Option<&str>, form: &Form) -> Result<String> {
    let old = old.unwrap_or_default();
    match form {
        Form::Json { own, wishes } => {
            let mut all = match old.trim() {
                "" => Value::Object(Map::new()),
                text => serde_json::from_str(text).context(
                    "it is not plain JSON (remarks in it would be lost); add the settings by hand",
                )?,
            };
            for (path, value) in own {
                put(&mut all, path, value.clone())?;
            }
            let all = all.as_object_mut().context("it holds no object")?;
            // All of them or none: half of a choice would be another one.
            if !wishes.iter().any(|(name, _)| all.contains_key(*name)) {
                all.extend(wishes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            }
            Ok(format!("{}\n", serde_json::to_string_pretty(&all)?))
        }
        Form::Toml { own, wishes } => {
            let mut all: DocumentMut = old.parse().context("it is no TOML")?;
            if own.is_empty() {
                check_free(&all, wishes)?;
            }
            // What is there says the same, where they are all that is asked for.
            let free = own.is_empty() || !wishes.iter().any(|(name, _)| all.contains_key(name));
            for (name, value) in wishes.iter().filter(|_| free) {
                if !all.contains_key(name) {
                    all[name] = toml_item(value)?;
                }
            }
            for (path, value) in own {
                put_toml(all.as_table_mut(), path, value)?;
            }
            Ok(all.to_string())
        }
        Form::Whole(text) if old.trim().is_empty() || old == text => Ok(text.clone()),
        Form::Whole(_) => {
            bail!("it holds something already, and remarks in YAML would be lost; add them by hand")
        }
    }
}

/// Where all that is asked for are wishes, one that goes unheard must not pass for heard.
fn check_free(all: &DocumentMut, wishes: &[(&'static str, Value)]) -> Result<()> {
    let said = |item: &Item| item.to_string().trim().to_owned();
    for (name, value) in wishes {
        let Some(there) = all.get(name) else { continue };
        if said(there) != said(&toml_item(value)?) {
            bail!("it has {name} = {} already; change it by hand", said(there));
        }
    }
    Ok(())
}

fn put(all: &mut Value, path: &[&str], value: Value) -> Result<()> {
    let (last, folders) = path.split_last().context("it has a name")?;
    let mut at = all;
    for name in folders {
        let table =
            at.as_object_mut().with_context(|| format!("{name} would stand in no object"))?;
        at = table.entry(*name).or_insert_with(|| Value::Object(Map::new()));
    }
    let table = at.as_object_mut().with_context(|| format!("{last} would stand in no object"))?;
    table.insert((*last).to_owned(), value);
    Ok(())
}

fn put_toml(all: &mut Table, path: &[&str], value: &Value) -> Result<()> {
    let (last, folders) = path.split_last().context("it has a name")?;
    let mut at = all;
    for name in folders {
        let item = at.entry(name).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        at = item.as_table_mut().with_context(|| format!("{name} is no table of its own"))?;
    }
    let mut table = Table::new();
    for (name, value) in value.as_object().context("it is an object")? {
        table[name] = toml_item(value)?;
    }
    at.insert(last, Item::Table(table));
    Ok(())
}

fn toml_item(value: &Value) -> Result<Item> {
    if let Some(number) = value.as_i64() {
        return Ok(toml_edit::value(number));
    }
    Ok(toml_edit::value(value.as_str().context("only texts and whole numbers stand in it")?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::connect::Whom;
    use crate::connect::clients::{self, Client};

    fn whom() -> Whom {
        let url = "http://127.0.0.1:8000".into();
        Whom { url, model: "m".into(), context: 65_536, key: None }
    }

    #[test]
    fn what_somebody_else_wrote_in_json_stays_and_ours_is_renewed() {
        let old = r#"{"theme": "dark", "provider": {"other": {"a": 1}, "mtplx": {"old": true}},
            "model": "other/x"}"#;
        let new = merged(Some(old), &clients::opencode(&whom())).unwrap();
        let new: Value = serde_json::from_str(&new).unwrap();
        assert_eq!((&new["theme"], &new["model"]), (&json!("dark"), &json!("other/x")));
        assert_eq!(new["provider"]["other"], json!({"a": 1}));
        assert!(new["provider"]["mtplx"].get("old").is_none());
        assert!(new.get("small_model").is_none(), "half of a choice");
        let names: Vec<&String> = new.as_object().unwrap().keys().collect();
        assert_eq!(names[..2], ["theme", "provider"]);
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        let form = clients::opencode(&whom());
        for old in ["{ // remark\n}", "{\"provider\": []}", "[]", "{\"a\": 1,}"] {
            assert!(merged(Some(old), &form).is_err(), "{old}");
        }
        let settings = clients::settings(Client::Continue, &whom()).unwrap().target.unwrap();
        assert!(merged(Some("name: mine\n"), &settings.form).is_err());
    }

    #[test]
    fn wishes_that_are_all_there_is_are_heard_or_refused() {
        let form = clients::settings(Client::Swival, &whom()).unwrap().target.unwrap().form;
        let new = merged(Some("# mine\nquiet = true\n"), &form).unwrap();
        let table: toml::Table = new.parse().unwrap();
        assert_eq!(table["max_context_tokens"].as_integer(), Some(65_536));
        assert!(new.starts_with("# mine\nquiet = true\n") && table["model"].as_str() == Some("m"));
        assert_eq!(merged(Some(&new), &form).unwrap(), new);
        // Some of them are there: the rest is added.
        let some = merged(Some("provider = \"generic\"\n"), &form).unwrap();
        let table: toml::Table = some.parse().unwrap();
        assert_eq!(table["max_context_tokens"].as_integer(), Some(65_536));
        let error = merged(Some("provider = \"lmstudio\"\n"), &form).unwrap_err().to_string();
        assert!(error.contains("provider = \"lmstudio\""), "{error}");
    }

    #[test]
    fn remarks_in_toml_stay() {
        let old = "# mine\nmodel = \"gpt\" # best\n\n[model_providers.other]\nname = \"o\"\n";
        let form = clients::settings(Client::Codex, &whom()).unwrap().target.unwrap().form;
        let new = merged(Some(old), &form).unwrap();
        assert!(new.contains("# mine\nmodel = \"gpt\" # best\n"), "{new}");
        assert!(
            new.contains("[model_providers.other]") && new.contains("wire_api = \"responses\"")
        );
        let table: toml::Table = new.parse().unwrap();
        assert!(table.get("model_provider").is_none(), "half of a choice");
        // Once more changes nothing.
        assert_eq!(merged(Some(&new), &form).unwrap(), new);
    }
}
