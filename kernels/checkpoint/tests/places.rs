//! Places that files are looked for in.

use std::fs;

use super::damage::{INDEX, SHARD, check};
use super::fixture::{Model, load, write};
use crate::checkpoint::{Checkpoint, Files};

#[cfg(unix)]
#[test]
fn a_link_or_a_pipe_where_a_file_should_be_is_described() {
    use std::os::unix::fs::symlink;
    for name in ["config.json", SHARD] {
        let folder = Model::small().write();
        let path = folder.path().join(name);
        fs::remove_file(&path).unwrap();
        symlink("../blobs/5a1e", &path).unwrap();
        check(load(folder.path()), &[name, "link to ../blobs/5a1e", "does not exist"]);
        fs::remove_file(&path).unwrap();
        symlink(name, &path).unwrap();
        check(load(folder.path()), &[name, "cannot be read"]);
    }
    let folder = Model::small().write();
    let pipe = folder.path().join(INDEX);
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    check(load(folder.path()), &[INDEX, "regular file"]);
    let link = folder.path().join("link");
    symlink("nowhere", &link).unwrap();
    check(load(&link), &["link", "nowhere", "does not exist"]);
}

#[test]
fn a_place_that_is_no_folder_is_described() {
    let folder = Model::small().write();
    check(load(&folder.path().join("gone")), &["gone", "does not exist"]);
    check(load(&folder.path().join("config.json")), &["config.json", "not a folder"]);
    let empty = Files::embedded("the embedded model", &[]);
    check(Checkpoint::load(&empty), &["the embedded model/config.json", "does not exist"]);
}

#[test]
fn files_beside_the_weights_can_be_read() {
    let folder = Model::small().write();
    let path = folder.path().join("chat_template.jinja");
    fs::write(&path, "{{ messages }}").unwrap();
    let files = Files::folder(folder.path()).unwrap();
    assert_eq!(files.text("chat_template.jinja").unwrap().unwrap(), "{{ messages }}");
    assert_eq!(files.text("tokenizer.json").unwrap(), None);
    assert!(files.open("config.json/inside").unwrap().is_none());
    assert!(files.open("").is_err() && files.open(".").is_err());
    fs::write(&path, [0xff, 0xfe]).unwrap();
    let text = files.text("chat_template.jinja").unwrap_err().to_string();
    assert!(text.contains("chat_template.jinja") && text.contains("no text"), "{text}");
    let mut names = files.names().unwrap();
    names.retain(|name| name.starts_with('c'));
    assert_eq!(names, ["chat_template.jinja", "config.json"]);
    write(&folder.path().join("z.safetensors"), &Model::small().head);
    assert!(files.names().unwrap().contains(&"z.safetensors".to_owned()));
}
