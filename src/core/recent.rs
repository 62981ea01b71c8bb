//! The last few measurements of a thing that changes slowly.

/// The last `N` measurements, or as many as there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recent<const N: usize> {
    values: [f64; N],
    len: usize,
    /// Where the next one goes, in a ring.
    next: usize,
}

impl<const N: usize> Default for Recent<N> {
    fn default() -> Self {
        Self { values: [0.0; N], len: 0, next: 0 }
    }
}

impl<const N: usize> Recent<N> {
    /// Takes one in, in place of the oldest if there is no room.
    pub(crate) fn add(&mut self, value: f64) {
        self.values[self.next] = value;
        self.next = (self.next + 1) % N;
        self.len = N.min(self.len + 1);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What is usual of late: the lower quartile. Steps take longer than usual for many reasons,
    /// such as a machine that pauses, and shorter for none. `None` before the first.
    pub(crate) fn usual(&self) -> Option<f64> {
        let mut values = self.values;
        let known = &mut values[..self.len];
        known.sort_by(f64::total_cmp);
        known.get(self.len / 4).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_heeds_no_pauses_and_follows_a_change() {
        let mut recent = Recent::<5>::default();
        assert_eq!(recent.usual(), None);
        [2.0, 9.0, 2.5, 9.0, 9.0].into_iter().for_each(|ms| recent.add(ms));
        assert_eq!(recent.usual(), Some(2.5));
        [4.0; 4].into_iter().for_each(|ms| recent.add(ms));
        assert_eq!(recent.usual(), Some(4.0));
    }
}
