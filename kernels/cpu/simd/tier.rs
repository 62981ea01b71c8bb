//! Which instructions this machine has, and the door through which kernels reach them.

use super::Simd;
use super::amx::Amx;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};

/// A set of instructions that this machine was found to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Tier(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// With a matrix unit beside it.
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// Names the instructions by which kernels compute here: equal inputs give equal bits where this is
/// equal.
#[must_use]
pub fn numerics() -> &'static str {
    Tier::current().name()
}

/// A piece of work that is compiled once per tier. `run` must be `#[inline(always)]`.
pub(in crate::cpu) trait Job {
    type Out;
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

impl Tier {
    /// The best tier of this machine.
    #[inline]
    pub(in crate::cpu) fn current() -> Self {
        #[cfg(test)]
        if let Some(tier) = FORCED.get() {
            return tier;
        }
        Self::detect()
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        if let Some(tier) = with_matrix_unit() {
            tier
        } else if has_avx512() {
            Self(Kind::Avx512)
        } else if has_avx2() {
            Self(Kind::Avx2)
        } else {
            Self(Kind::Portable)
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self(Kind::Portable)
    }

    /// Its name: tiers round differently.
    fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Portable => "portable",
        }
    }

    /// The matrix unit of this tier.
    #[inline]
    pub(in crate::cpu) fn matrix_unit(self) -> Option<Amx> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => Amx::new(),
            _ => None,
        }
    }

    /// Runs `job` with the instructions of this tier.
    #[inline]
    pub(in crate::cpu) fn run<J: Job>(self, job: J) -> J::Out {
        match self.0 {
            // SAFETY: this kind of tier is made only after its features were detected.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { run_avx512(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => unsafe { run_avx512(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { run_avx2(job) },
            Kind::Portable => job.run(Portable),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn with_matrix_unit() -> Option<Tier> {
    if has_avx512() { Amx::new().map(|_| Tier(Kind::Amx)) } else { None }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn run_avx512<J: Job>(job: J) -> J::Out {
    // SAFETY: the caller has these features, or it could not be here.
    job.run(unsafe { Avx512::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<J: Job>(job: J) -> J::Out {
    // SAFETY: as above.
    job.run(unsafe { Avx2::new() })
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<Tier>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
impl Tier {
    /// Every tier this machine can run, best first. All but a last, unfused portable one agree
    /// to the bit.
    pub(in crate::cpu) fn all() -> Vec<Tier> {
        let mut tiers = vec![];
        #[cfg(target_arch = "x86_64")]
        {
            tiers.extend(with_matrix_unit());
            if has_avx512() {
                tiers.push(Self(Kind::Avx512));
            }
            if has_avx2() {
                tiers.push(Self(Kind::Avx2));
            }
        }
        tiers.push(Self(Kind::Portable));
        tiers
    }

    /// Whether multiply-add rounds once on this tier.
    pub(in crate::cpu) fn is_fused(self) -> bool {
        self.0 != Kind::Portable || super::portable::FUSED
    }
}

/// Runs `body` with every kernel it calls on `tier`.
#[cfg(test)]
pub(in crate::cpu) fn with_tier<R>(tier: Tier, body: impl FnOnce() -> R) -> R {
    let before = FORCED.replace(Some(tier));
    let result = body();
    FORCED.set(before);
    result
}
