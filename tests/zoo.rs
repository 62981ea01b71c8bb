//! Two hundred folders, good and damaged, each of which must be judged rightly, at once and without
//! a panic. What they are follows from a seed.

mod animals;
mod weights;

use std::path::Path;
use std::time::{Duration, Instant};

use mtplx::tiers::{self, Tier};

use crate::house::mtplx;
use animals::{Animal, zoo};

const ANIMALS: usize = 200;

/// The bar is 50 ms. That is printed; what is held here is what no machine exceeds by chance.
const NEVER: Duration = Duration::from_secs(2);

fn check(animal: &Animal, judged: &tiers::Judged) {
    let Animal { name, tier, says, path } = animal;
    let told = [judged.reasons.join("\n"), judged.mend.clone().unwrap_or_default()].join("\n");
    assert_eq!(judged.tier, *tier, "{name} in {}: {told}", path.display());
    assert!(told.contains(says), "{name}: {says:?} is not in: {told}");
    assert!(!judged.reasons.is_empty(), "{name} has no reasons");
}

fn look(path: &Path) -> (tiers::Judged, Duration) {
    let start = Instant::now();
    let judged = tiers::judge(path);
    (judged, start.elapsed())
}

#[test]
fn every_folder_of_the_zoo_is_judged_rightly_and_at_once() {
    let ground = tempfile::tempdir().unwrap();
    let animals = zoo(ground.path(), ANIMALS, 9);
    assert_eq!(animals.len(), ANIMALS);
    let mut times = Vec::new();
    for animal in &animals {
        let (judged, first) = look(&animal.path);
        check(animal, &judged);
        let again = (0..2).map(|_| look(&animal.path).1);
        times.push((again.fold(first, Duration::min), animal.name));
    }
    times.sort();
    let ms = |at: usize| times[at].0.as_secs_f64() * 1e3;
    let (slowest, name) = times[ANIMALS - 1];
    println!(
        "inspect in the process: median {:.2} ms, slowest {:.2} ms ({name})",
        ms(100),
        ms(199)
    );
    assert!(slowest < NEVER, "{name} took {slowest:?}");
    for tier in Tier::ALL {
        let count = animals.iter().filter(|animal| animal.tier == tier).count();
        println!("  {count:>3} {tier}");
        assert!(count > 0, "the zoo has none that is {tier}");
    }
}

#[test]
fn the_binary_says_the_same_of_the_zoo() {
    let ground = tempfile::tempdir().unwrap();
    let mut slowest = Duration::ZERO;
    for animal in zoo(ground.path(), animals::KINDS, 4) {
        let start = Instant::now();
        let out = mtplx().arg("inspect").arg(&animal.path).arg("--json").output().unwrap();
        slowest = slowest.max(start.elapsed());
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let name = animal.name;
        assert_eq!(report["tier"], animal.tier.name(), "{name}: {report}");
        assert_eq!(out.status.code(), Some(animal.tier.exit_code().into()), "{name}");
        assert_eq!(report["served"], animal.tier == Tier::Verified, "{name}");
        assert!(out.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    }
    println!("inspect as a process: slowest {:.1} ms", slowest.as_secs_f64() * 1e3);
    let start = Instant::now();
    assert!(mtplx().arg("--help").output().unwrap().status.success());
    println!("help as a process: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
}
