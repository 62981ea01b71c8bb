//! States that are carried out of the engine and into it, stretch by stretch, while all else goes
//! on; what was carried out outlives its generation, as files do.

use super::*;
use crate::engine::Stretch;
use crate::image::Image;
use crate::prefix::Prefix;

/// What is on its way, and what lies outside.
#[derive(Default)]
pub(super) struct Porters {
    leaving: Option<(Deposit, Image)>,
    arriving: Option<(Deposit, Image, u64)>,
    files: Vec<(Prefix, Kind, Image)>,
}

impl World {
    /// Goes on with what it carries, sometimes changes its mind; begins to carry. What has just
    /// been given pages is written after the next plan only, as that may still read them.
    pub(super) fn carry(&mut self) {
        self.carry_out();
        self.carry_in();
        if self.porters.leaving.is_none() && self.rng.chance(20) && !self.shelf.0.is_empty() {
            let i = self.rng.below(self.shelf.0.len() as u64) as usize;
            let deposit = self.shelf.0[i].clone();
            assert!(self.batch.hold(deposit.snapshot), "what is on the shelf is parked");
            self.porters.leaving = Some((deposit, Image::default()));
        }
        if self.porters.arriving.is_none() && self.rng.chance(20) && !self.porters.files.is_empty()
        {
            let i = self.rng.below(self.porters.files.len() as u64) as usize;
            let (prefix, kind, image) = self.porters.files[i].clone();
            let deposit = self.batch.import(prefix, kind);
            self.porters.arriving = deposit.map(|deposit| (deposit, image, 0));
        }
    }

    fn carry_out(&mut self) {
        let Some((deposit, mut image)) = self.porters.leaving.take() else { return };
        let most = 1 + self.rng.below(200) as usize;
        let whole = self.batch.parcel(deposit.snapshot).map(|parcel| {
            assert_eq!(parcel.tokens, deposit.prefix.tokens.len());
            self.engine.export(parcel, &mut image, most).unwrap()
        });
        if whole != Some(true) && !self.rng.chance(40) {
            self.porters.leaving = Some((deposit, image));
            return;
        }
        self.batch.let_go(deposit.snapshot);
        if whole == Some(true) {
            self.tally.carried_out += 1;
            self.porters.files.push((deposit.prefix, deposit.kind, image));
            if self.porters.files.len() > 6 {
                self.porters.files.remove(0);
            }
        }
    }

    fn carry_in(&mut self) {
        let Some((deposit, image, mut done)) = self.porters.arriving.take() else { return };
        let parcel = self.batch.parcel(deposit.snapshot).expect("nobody else can let it go");
        let most = 1 + self.rng.below(300) as usize;
        let stretch = Stretch { done: &mut done, most };
        if !self.engine.import(parcel, &image, stretch).unwrap() {
            if self.rng.chance(40) {
                self.batch.forget_import(deposit.snapshot);
            } else {
                self.porters.arriving = Some((deposit, image, done));
            }
            return;
        }
        self.tally.carried_in += 1;
        self.batch.arrived(deposit.snapshot);
        self.owners.insert(deposit.snapshot, deposit.prefix.tenant);
        // A row may have come to the same meanwhile: one of them is enough.
        if self.shelf.0.iter().any(|other| other.prefix == deposit.prefix) {
            self.batch.release(deposit.snapshot);
        } else {
            self.shelf.0.push(deposit);
        }
    }

    /// The device broke: only what is outside is left.
    pub(super) fn put_down(&mut self) {
        (self.porters.leaving, self.porters.arriving) = (None, None);
    }

    /// Ends what is on its way.
    pub(super) fn come_to_rest(&mut self) {
        if let Some((deposit, _)) = self.porters.leaving.take() {
            self.batch.let_go(deposit.snapshot);
        }
        if let Some((deposit, ..)) = self.porters.arriving.take() {
            self.batch.forget_import(deposit.snapshot);
        }
    }
}
