//! What settings are taken, and what is said of others.

use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), &[])
}

#[test]
fn the_defaults_are_complete_and_sound() {
    let config = Config::load(None, &[]).unwrap();
    assert_eq!(config.server.port, 8000);
    assert!(config.server.host.is_loopback());
}

#[test]
fn a_file_holds_differences_only_and_the_command_line_wins() {
    let config = load("[server]\nport = 9\n[engine]\nslots = 3").unwrap();
    assert_eq!((config.server.port, config.engine.slots), (9, 3));
    let over = [("server", "port", Value::Integer(11))];
    assert_eq!(Config::load(None, &over).unwrap().server.port, 11);
}

#[test]
fn localhost_is_an_address() {
    let config = load("[server]\nhost = \"localhost\"").unwrap();
    assert_eq!(config.server.host, host("127.0.0.1").unwrap());
}

#[test]
fn nobody_from_elsewhere_is_let_in_without_a_key_unless_that_is_said() {
    let away = "[server]\nhost = \"0.0.0.0\"\n";
    let error = load(away).unwrap().check_door().unwrap_err().to_string();
    assert!(error.contains("mtplx keys add") && error.contains("server.open"), "{error}");
    load(&format!("{away}open = true")).unwrap().check_door().unwrap();
    load("[server]\nhost = \"::1\"").unwrap().check_door().unwrap();
}

#[test]
fn kv_memory_is_bounded_unless_it_is_0() {
    assert!(Config::load(None, &[]).unwrap().engine.kv_bytes_max.is_some());
    assert_eq!(load("[engine]\nkv_bytes_max = 0").unwrap().engine.kv_bytes_max, None);
}

#[test]
fn what_is_wrong_is_named() {
    for (text, named) in [
        ("[server]\nprot = 9", "prot"),
        ("[sever]\nport = 9", "sever"),
        ("[server]\nport = \"x\"", "server.port"),
        ("[server]\nport = \"x\"", "u16"),
        ("[server]\nport = \"x\"", "my.toml"),
        ("[server]\nhost = \"home\"", "server.host"),
        ("[engine]\nslots = 0", "engine.slots"),
        ("[engine]\npage_tokens = 33", "engine.page_tokens"),
        ("[engine]\ndraft_vocab_share = 0.0", "engine.draft_vocab_share"),
        ("[engine]\ndraft_vocab_share = 1.5", "engine.draft_vocab_share"),
        ("[engine]\ndraft_head_bits = 7", "engine.draft_head_bits"),
        ("[thermal]\nwarm_celsius = 120.0", "thermal"),
        ("[server]\nbytes_max = 9", "server.bytes_max"),
        ("[keys]\nfile = \"/nonexistent/keys\"", "/nonexistent/keys"),
        ("[root]\nbackoff_s = -1.0", "root.backoff_s"),
        ("[server", "line 1"),
        ("[admin]\ntoken = s3cret", "line 2"),
        ("[admin]\ntoken = 12345678", "admin.token"),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.contains(named), "{text:?}: {error}");
        assert!(!error.contains("s3cret") && !error.contains("12345678"), "{error}");
    }
    let over = [("server", "port", Value::String("x".into()))];
    let error = Config::load(None, &over).unwrap_err().to_string();
    assert!(error.contains("the command line") && error.contains("server.port"), "{error}");
    let missing = Config::load(Some(Path::new("/nonexistent/x.toml")), &[]).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/x.toml"));
}

#[test]
fn a_mode_lies_between_the_defaults_and_the_file_and_the_command_line_has_the_last_word() {
    let config = load("mode = \"burst\"").unwrap();
    assert_eq!(config.engine.context_tokens_max, Some(8192));
    let config = load("mode = \"burst\"\n[engine]\ncontext_tokens_max = 100").unwrap();
    assert_eq!(config.engine.context_tokens_max, Some(100));
    let over = [("", "mode", Value::String("safe".into()))];
    let config = Config::load(None, &over).unwrap();
    assert_eq!((config.mode.as_str(), config.engine.depth_max), ("safe", 0));
    assert_eq!(Config::load(None, &[]).unwrap().mode, "sustained");
    for (text, named) in [
        ("[fans]\nidle_s = -1.0", "fans.idle_s"),
        ("mode = \"turbo\"", "sustained-max"),
        ("mode = 7", "mode"),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.contains(named), "{text:?}: {error}");
    }
}

#[test]
fn every_mode_is_sound_and_an_ordinary_file() {
    for (name, text) in crate::modes::MODES {
        let over = [("", "mode", Value::String(name.into()))];
        let (mode, file) = (Config::load(None, &over).unwrap(), load(text).unwrap());
        let parts = |config: Config| (config.engine, config.actors, config.fans);
        assert_eq!(parts(mode), parts(file), "{name}");
    }
}
