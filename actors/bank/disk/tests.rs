use std::process::{Command, Stdio};
use std::time::Instant;

use mtplx_core::Token;
use mtplx_core::batch::Kind;
use mtplx_core::image::Part;
use mtplx_core::prefix::{Prefix, chain};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const IDENTITY: &str = "a model";

/// A state whose bytes follow from its number.
fn state(number: u64) -> (Label, Image) {
    let tokens: Vec<Token> = (0..8 + number % 40).map(|i| (i * number % 97) as Token + 1).collect();
    let tokens: Vec<Token> = tokens.into_iter().chain([number as Token]).collect();
    let part = |i: u64| {
        let len = (number * 7919 + i * 104_729) % 40_000;
        let bytes: Vec<u8> = (0..len).map(|b| ((b * (number + i + 1)) >> 3) as u8).collect();
        Part { name: format!("part {i}"), dtype: "u8".into(), shape: vec![bytes.len()], bytes }
    };
    let prefix = Prefix { tenant: Tenant(number % 2), tokens: tokens.into() };
    let label = Label { identity: IDENTITY.into(), prefix, kind: Kind::Reply };
    (label, Image { parts: (0..3).map(part).collect() })
}

fn config(folder: &TempDir) -> Config {
    Config {
        path: folder.path().join("bank"),
        bytes_max: 4 << 20,
        queue_bytes_max: 1 << 20,
        tokens_min: 4,
        idle_s: 60,
    }
}

/// The thread of the one before may still be ending.
fn open(config: &Config) -> Store {
    let start = Instant::now();
    loop {
        match Store::open(config.clone()) {
            Ok(store) => return store,
            Err(error) if start.elapsed() > Duration::from_secs(10) => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn put(store: &Store, number: u64) -> Id {
    let (label, image) = state(number);
    let id = label.id();
    assert!(store.put(label, image));
    assert!(store.flush(Duration::from_secs(30)));
    id
}

fn encoded(number: u64) -> Vec<u8> {
    let (label, image) = state(number);
    let mut bytes = Vec::new();
    write(&mut bytes, &label, &image).unwrap();
    bytes
}

/// Files in a folder, by what their names end with.
fn names(config: &Config, ending: &str) -> usize {
    let all = fs::read_dir(&config.path).unwrap();
    all.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(ending)).count()
}

#[test]
fn a_state_comes_back_from_another_process_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&config(&folder));
    let id = put(&store, 7);
    assert!(store.has(id) && !store.put(state(7).0, state(7).1), "once is enough");
    drop(store);
    let store = open(&config(&folder));
    let (label, image) = state(7);
    let prompt = [&label.prefix.tokens[..], &[5, 6]].concat();
    let (tenant, len) = (label.prefix.tenant, label.prefix.tokens.len());
    let hashes = chain(&prompt);
    assert_eq!(store.longest(IDENTITY, tenant, &hashes, 0), Some((id, len)));
    assert_eq!(store.longest(IDENTITY, tenant, &hashes, len), None);
    assert_eq!(store.longest(IDENTITY, Tenant(5), &hashes, 0), None);
    assert_eq!(store.longest("another model", tenant, &hashes, 0), None);
    assert_eq!(store.foreign("another model", tenant, &hashes), Some(len));
    assert_eq!(store.foreign(IDENTITY, tenant, &hashes), None);
    assert_eq!(store.restore(id, &Passage::default()).unwrap(), (label, image));
    assert!(store.remove(id) && !store.remove(id));
    assert_eq!(names(&config(&folder), ".state"), 0);
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_the_order_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut bounds = config(&folder);
    let store = open(&bounds);
    let ids: Vec<Id> = (1..=6).map(|n| put(&store, n)).collect();
    store.restore(ids[0], &Passage::default()).unwrap();
    let sizes: u64 = store.all().iter().map(|(_, file)| file.bytes).sum();
    drop(store);
    bounds.bytes_max = sizes - 1;
    let store = open(&bounds);
    let left: Vec<bool> = ids.iter().map(|&id| store.has(id)).collect();
    assert_eq!(left, [true, false, true, true, true, true]);
    assert_eq!(names(&bounds, ".state"), 5);
}

#[test]
fn beyond_the_bound_of_the_queue_states_are_dropped_not_kept_waiting() {
    let folder = tempfile::tempdir().unwrap();
    // Room for all of them, or some would be evicted where the writer is quick.
    let bounds = Config { queue_bytes_max: 100_000, bytes_max: 64 << 20, ..config(&folder) };
    let store = open(&bounds);
    // Faster than any disk: some find no room, and nothing waits.
    let kept = (1..=300).filter(|&n| store.put(state(n).0, state(n).1)).count();
    assert!(store.flush(Duration::from_secs(60)));
    assert_eq!(names(&bounds, ".state"), kept);
    // One alone may be larger, but never larger than all files may be.
    assert!(store.has_room(bounds.bytes_max) && !store.has_room(bounds.bytes_max + 1));
}

#[test]
fn what_is_damaged_foreign_or_half_written_is_removed_and_strangers_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = config(&folder);
    let store = open(&bounds);
    let (good, spoilt) = (put(&store, 1), put(&store, 2));
    let (head, other) = (put(&store, 3), put(&store, 4));
    drop(store);
    let path = |id| path_of(&bounds.path, id);
    let flip = |id, at: fn(usize) -> usize| {
        let mut bytes = fs::read(path(id)).unwrap();
        let at = at(bytes.len());
        bytes[at] ^= 4;
        fs::write(path(id), bytes).unwrap();
    };
    flip(spoilt, |len| len - 100);
    flip(head, |_| 40);
    // A good file of another state.
    fs::copy(path(good), path(other)).unwrap();
    for name in ["x.part", "y.state", "0123456789abcdef0123456789abcdef.state", "notes.txt"] {
        fs::write(bounds.path.join(name), "by somebody").unwrap();
    }
    let store = open(&bounds);
    assert_eq!(store.restore(good, &Passage::default()).unwrap(), state(1));
    assert!(!store.has(head), "its head is wrong");
    for id in [spoilt, other] {
        assert!(
            store.has(id)
                && matches!(store.restore(id, &Passage::default()), Err(Refused::Damaged(_)))
        );
        assert!(!store.has(id));
    }
    assert_eq!((names(&bounds, ".state"), names(&bounds, ".part")), (1, 0));
    assert_eq!(names(&bounds, "notes.txt"), 1);
}

/// Opening a link to itself fails for everybody, root too, and not for the file's fault.
#[cfg(unix)]
#[test]
fn what_cannot_be_read_now_is_not_removed_and_not_looked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = config(&folder);
    let store = open(&bounds);
    let id = put(&store, 1);
    let (path, aside) = (path_of(&bounds.path, id), bounds.path.join("aside"));
    fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert!(matches!(store.restore(id, &Passage::default()), Err(Refused::Read(_))));
    assert!(!store.has(id) && path.is_symlink());
    drop(store);
    let store = open(&bounds);
    assert!(!store.has(id) && path.is_symlink());
    drop(store);
    fs::rename(&aside, &path).unwrap();
    assert_eq!(open(&bounds).restore(id, &Passage::default()).unwrap(), state(1));
}

#[test]
fn what_is_dropped_before_it_is_written_is_never_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = Config { queue_bytes_max: 64 << 20, bytes_max: 64 << 20, ..config(&folder) };
    let store = open(&bounds);
    let mut gone = 0;
    for number in 1..=200 {
        let (label, image) = state(number);
        let id = label.id();
        assert!(store.put(label, image) && store.has_or_expects(id));
        // At once, or while it is being written.
        std::thread::sleep(Duration::from_micros(number % 8 * 50));
        if number % 2 == 0 {
            assert!(store.remove(id) && !store.has_or_expects(id));
            gone += 1;
        }
    }
    // One that is given again after it was dropped is kept.
    assert!(store.put(state(2).0, state(2).1));
    assert!(store.flush(Duration::from_secs(60)));
    assert_eq!(names(&bounds, ".state"), 200 - gone + 1);
    assert_eq!(store.all().len(), 200 - gone + 1);
    assert_eq!(store.restore(state(2).0.id(), &Passage::default()).unwrap(), state(2));
}

#[cfg(unix)]
#[test]
fn files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let bounds = config(&folder);
    let store = open(&bounds);
    let state = path_of(&bounds.path, put(&store, 1));
    for (path, mode) in [(state, 0o600), (bounds.path.join("lock"), 0o600), (bounds.path, 0o700)] {
        let found = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn a_folder_belongs_to_one_server() {
    let folder = tempfile::tempdir().unwrap();
    let _store = open(&config(&folder));
    assert!(Store::open(config(&folder)).unwrap_err().to_string().contains("another server"));
}

/// What may happen to a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Overwrite(prop::sample::Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    let some = || prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        (at(), 1_u8..=255).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        at().prop_map(Damage::Cut),
        (at(), some()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), some()).prop_map(|(at, bytes)| Damage::Overwrite(at, bytes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_damaged_file_is_refused_or_is_what_it_was(
        number in 1_u64..50,
        // Most damage hits the front, where sizes stand.
        front in any::<bool>(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let good = encoded(number);
        let mut bytes = good.clone();
        for damage in damages {
            let within = if front { bytes.len().min(400) } else { bytes.len() };
            match damage {
                _ if within == 0 => {}
                Damage::Flip(at, bits) => bytes[at.index(within)] ^= bits,
                Damage::Cut(at) => bytes.truncate(at.index(within)),
                Damage::Insert(at, more) => drop({
                    let at = at.index(within);
                    bytes.splice(at..at, more).collect::<Vec<_>>()
                }),
                Damage::Overwrite(at, more) => {
                    let at = at.index(within);
                    let end = bytes.len().min(at + more.len());
                    bytes[at..end].copy_from_slice(&more[..end - at]);
                }
            }
        }
        let len = bytes.len() as u64;
        match read(&mut bytes.as_slice(), len) {
            Ok(read) => {
                prop_assert_eq!(&bytes, &good);
                prop_assert_eq!(read, state(number));
            }
            Err(Refused::Damaged(_)) => prop_assert_ne!(&bytes, &good),
            Err(Refused::Read(error)) => prop_assert!(false, "a short read: {}", error),
        }
    }

    #[test]
    fn nonsense_is_refused_without_a_panic(
        magic in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let front: &[u8] = if magic { b"mtplxbnk\x01\0\0\0" } else { b"" };
        let bytes = [front, &bytes].concat();
        prop_assert!(read(&mut bytes.as_slice(), bytes.len() as u64).is_err());
    }
}

// === killed while it writes ===

/// Names the folder to a child of the test below.
const CHILD: &str = "MTPLX_TEST_BANK";
/// A prime, so that restarts do not write in step with evictions.
const STATES: u64 = 251;
const KILLS: u64 = 200;

#[test]
fn child_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let path = PathBuf::from(path);
    let store = open(&Config { path, ..config(&tempfile::tempdir().unwrap()) });
    println!("writing");
    for number in (std::process::id() as u64..).map(|n| n % STATES) {
        store.put(state(number).0, state(number).1);
        if number % 16 == 0 {
            store.flush(Duration::from_secs(1));
        }
    }
}

/// Starts a writer, waits until it writes and then for `pause`, and kills it.
fn kill_a_writer(config: &Config, pause: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bank::disk::tests::child_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD, &config.path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut told = BufReader::new(child.stdout.take().unwrap());
    while !line.contains("writing") {
        line.clear();
        assert!(io::BufRead::read_line(&mut told, &mut line).unwrap() > 0, "it did not start");
    }
    std::thread::sleep(pause);
    // On Unix this is SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_at_any_moment_it_leaves_nothing_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder);
    let images: std::collections::BTreeMap<Id, u64> =
        (0..STATES).map(|n| (state(n).0.id(), n)).collect();
    let (mut halves, mut restored) = (0, 0);
    for kill in 0..KILLS {
        kill_a_writer(&config, Duration::from_micros(kill * 7919 % 23_000));
        halves += names(&config, ".part");
        let store = open(&config);
        assert_eq!(names(&config, ".part"), 0, "after kill {kill}");
        let files = store.all();
        assert_eq!(names(&config, ".state"), files.len(), "after kill {kill}");
        for (id, _) in files {
            let number = images[&id];
            assert_eq!(
                store.restore(id, &Passage::default()).unwrap(),
                state(number),
                "after kill {kill}"
            );
            restored += 1;
        }
    }
    // Kills that hit nothing would prove nothing.
    println!("{halves} of {KILLS} kills left a file half written; {restored} were read and right");
    assert!(halves >= KILLS as usize / 20 && restored > 1000, "{halves} halves, {restored} whole");
}
