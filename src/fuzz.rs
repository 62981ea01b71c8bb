//! Settings and keys that somebody wrote in a hurry.

use std::fs;

use mtplx_fuzz::{Bound, Corpus, fuzz};

use crate::config::Config;
use crate::keys;

#[global_allocator]
static COUNTING: mtplx_fuzz::memory::Counting = mtplx_fuzz::memory::Counting;

const DEFAULTS: &str = include_str!("../config/mtplx.toml");
const BOUND: Bound = Bound { fixed: 4 << 20, each: 1024 };

#[test]
fn fuzz_settings() {
    let few = "[server]\nport = 1\nhosts = [\"a\"]\n[tuner]\nprefill_stretch = 1.5\n";
    let words =
        ["[server]", "[[", "= 0", "= -1", "nan", "inf", "\"\"\"", "1979-05-27", "0x_f", "'"];
    let corpus = Corpus::new([few, DEFAULTS, "[log]\nfilter = \"info\"\n"], &words);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    fuzz("settings", &corpus, (BOUND, 10), |input| {
        fs::write(&path, input).unwrap();
        let _ = Config::load(Some(&path), &[]);
    });
}

#[test]
fn fuzz_files_of_keys() {
    let hash = "0123456789abcdef".repeat(4);
    let one = format!(
        "[[key]]\nname = \"ann\"\ntenant = \"t\"\nclass = \"background\"\nweight = 2\n\
         trusted = true\nhash = \"{hash}\"\ncreated = \"2026\"\nprefix = \"mtplx_0\"\n\
         [key.hard]\nday_tokens = 7\nrequests = 2\n"
    );
    let words = ["[[key]]", "[key.soft]", "weight = 0", "minute_tokens = ", "\"\"\"", "name = "];
    let corpus = Corpus::new([one.clone(), one.repeat(2), String::new()], &words);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    fuzz("keys", &corpus, (BOUND, 2), |input| {
        fs::write(&path, input).unwrap();
        let _ = keys::read(&path);
    });
}
