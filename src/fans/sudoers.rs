//! The rule that lets one user run three orders of one program as root, without a password: written
//! only with consent, proved before it is in place, and only for a program that nobody but root can
//! exchange, since whoever can would be root.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Where sudo reads rules.
pub(super) const FOLDER: &str = "/etc/sudoers.d";
/// Sudo reads no files with a dot in their name: what is not proved yet has one.
const NAME: &str = "mtplx";
const UNPROVED: &str = "mtplx.unproved";
const ORDERS: [&str; 3] = ["max", "auto", "status"];

/// The rule's text.
pub(super) fn rule(user: &str, program: &Path) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    ensure!(
        user.chars().all(plain)
            && user.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'),
        "the user's name {user:?} cannot stand in a rule"
    );
    let path = program.to_str().context("the program's path is no text")?;
    // All else has a meaning in a rule, or may have.
    let fine = path.starts_with('/') && path.chars().all(|c| plain(c) || c == '/');
    ensure!(fine, "the program's path {path:?} cannot stand in a rule");
    let orders: Vec<String> = ORDERS.iter().map(|order| format!("{path} {order}")).collect();
    Ok(format!(
        "# Made by `mtplx max --install`, taken away by `mtplx max --uninstall`.\n\
         {user} ALL=(root) NOPASSWD: {}\n",
        orders.join(", ")
    ))
}

/// Refuses a program that somebody else than root could exchange; its real path otherwise.
pub(super) fn prove_program(program: &Path) -> Result<PathBuf> {
    let shown = program.display();
    let real = program.canonicalize().with_context(|| format!("there is no {shown}"))?;
    for part in real.ancestors() {
        let seen = part.metadata().with_context(|| format!("cannot look at {}", part.display()))?;
        // In a folder with the sticky bit only owners rename and remove.
        let open = seen.mode() & 0o022 != 0 && !(seen.is_dir() && seen.mode() & 0o1000 != 0);
        if seen.uid() != 0 || open {
            bail!(
                "{} can be changed by others than root, who would be root by this rule; put a copy \
                 where they cannot, for example\n  sudo install -d /usr/local/libexec && sudo \
                 install -m 0755 {} /usr/local/libexec/thermalforge\nand name it as fans.program",
                part.display(),
                real.display()
            );
        }
    }
    Ok(real)
}

/// Puts the rule in place, if it can be proved. Whether anything changed.
pub(super) fn install(folder: &Path, text: &str) -> Result<bool> {
    let (unproved, path) = (folder.join(UNPROVED), folder.join(NAME));
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    // What an interrupted run left.
    let _ = std::fs::remove_file(&unproved);
    let proved = write(&unproved, text).and_then(|()| visudo(&unproved));
    let placed = proved.and_then(|()| {
        std::fs::rename(&unproved, &path)
            .with_context(|| format!("cannot write {}", path.display()))
    });
    if placed.is_err() {
        let _ = std::fs::remove_file(&unproved);
    }
    placed.map(|()| true)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o440).open(path)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o440))?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Sudo's own word on it, where sudo is.
fn visudo(path: &Path) -> Result<()> {
    let mut visudo = Command::new("visudo");
    visudo.arg("-cf").arg(path).stdin(Stdio::null());
    match visudo.output() {
        Err(absent) if absent.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("cannot run visudo"),
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => {
            bail!("visudo refuses the rule: {}", String::from_utf8_lossy(&out.stderr).trim())
        }
    }
}

/// Whether the rule works: sudo is asked, and runs nothing.
pub(super) fn verify(program: &Path) -> Result<()> {
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "-l"]).arg(program).arg("max").stdin(Stdio::null());
    let out = sudo.output().context("cannot run sudo")?;
    ensure!(
        out.status.success(),
        "the rule is in place and sudo does not heed it: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

/// Takes the rule away. Whether there was one.
pub(super) fn remove(folder: &Path) -> Result<bool> {
    let path = folder.join(NAME);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Whether there is a rule, as far as we may look.
pub(super) fn is_installed(folder: &Path) -> bool {
    folder.join(NAME).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_one_user_one_program_and_three_orders() {
        let text = rule("ann", Path::new("/usr/local/bin/thermalforge")).unwrap();
        let orders = "/usr/local/bin/thermalforge max, /usr/local/bin/thermalforge auto, \
                      /usr/local/bin/thermalforge status\n";
        assert!(text.ends_with(&format!("ann ALL=(root) NOPASSWD: {orders}")), "{text}");
    }

    #[test]
    fn nothing_that_means_more_in_a_rule_gets_into_one() {
        for user in ["", "ann, ben", "%admin", "ALL\n", "#0", "-a"] {
            assert!(rule(user, Path::new("/bin/x")).is_err(), "{user:?}");
        }
        for path in ["relative", "/a b", "/a,/bin/sh", "/a*", "/a\\b", "/a:b", "/a\nb", "/a!b"] {
            assert!(rule("ann", Path::new(path)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_program_that_others_can_exchange_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("thermalforge");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o777)).unwrap();
        let error = prove_program(&program).unwrap_err().to_string();
        assert!(error.contains("others than root") && error.contains("fans.program"), "{error}");
        assert!(prove_program(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_rule_is_put_in_place_once_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let text = rule("ann", Path::new("/bin/thermalforge")).unwrap();
        assert!(install(dir.path(), &text).unwrap());
        assert!(!install(dir.path(), &text).unwrap(), "it is there already");
        assert!(is_installed(dir.path()) && !dir.path().join(UNPROVED).exists());
        let mode = dir.path().join(NAME).metadata().unwrap().mode();
        assert_eq!(mode & 0o777, 0o440, "sudo heeds no other");
        assert!(remove(dir.path()).unwrap() && !remove(dir.path()).unwrap());
    }
}
