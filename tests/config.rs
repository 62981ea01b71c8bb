//! Every file in config/ parses and checks.

use mtplx::config::Config;

use crate::house::root;

#[test]
fn every_settings_file_is_sound() {
    let files = std::fs::read_dir(root().join("config")).unwrap();
    let paths =
        files.map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "toml"));
    let mut seen = 0;
    for path in paths {
        Config::load(Some(&path), &[]).unwrap_or_else(|e| panic!("{e}"));
        seen += 1;
    }
    assert!(seen > 0);
}
