//! The kernels compiled for each instruction set that we know, and the choice between them at run time. Only the files
//! of this folder have `unsafe` in them: vector loads and stores, whose lengths are checked where they are made, and
//! calls of functions that need CPU features, for which a value of the instruction set's type is the proof.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use crate::format::geometry::ElementType;
use crate::kernel::generic;
use crate::kernel::lanes::Plain;
use crate::kernel::number::{Bf16, E4m3, E5m2, F16, F32};
use crate::kernel::rows::Rows;

/// An instruction set that the kernels can run on.
#[derive(Clone, Copy, Debug)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    Plain,
}

impl Set {
    /// Lists what this processor has, the best first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = avx512::Avx512::detect().map(Self::Avx512).into_iter().chain(avx2::Avx2::detect().map(Self::Avx2));
        #[cfg(target_arch = "aarch64")]
        let fast = neon::Neon::detect().map(Self::Neon).into_iter();
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let fast = std::iter::empty();
        fast.chain([Self::Plain])
    }

    #[inline]
    fn chosen() -> Self {
        #[cfg(test)]
        if let Some(name) = FORCED.get() {
            return Self::all().find(|set| set.name() == name).expect("one of `instruction_sets`");
        }
        Self::all().next().expect("at least `Plain`")
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            Self::Plain => "plain",
        }
    }
}

/// The instruction set that the kernels run on here, for tests and benchmarks to name.
pub fn instruction_set() -> &'static str {
    Set::chosen().name()
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Lists what this processor has, the best first.
#[cfg(test)]
pub(crate) fn instruction_sets() -> Vec<&'static str> {
    Set::all().map(Set::name).collect()
}

/// Calls `each` once for each instruction set that this processor has, with this thread's kernels on it.
#[cfg(test)]
pub(crate) fn on_each_instruction_set<E>(mut each: impl FnMut(&'static str) -> Result<(), E>) -> Result<(), E> {
    let result = instruction_sets().into_iter().try_for_each(|name| {
        FORCED.set(Some(name));
        each(name)
    });
    FORCED.set(None);
    result
}

macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(element: ElementType, $($arg: $ty),*) $(-> $ret)? {
            match element {
                // Opaque elements are moved like numbers of their width, and never read as such.
                ElementType::Bf16 | ElementType::U16 => $name::run::<Bf16>($($arg),*),
                ElementType::F16 => $name::run::<F16>($($arg),*),
                ElementType::F32 | ElementType::U32 => $name::run::<F32>($($arg),*),
                ElementType::E4m3 | ElementType::U8 => $name::run::<E4m3>($($arg),*),
                ElementType::E5m2 => $name::run::<E5m2>($($arg),*),
            }
        }

        mod $name {
            use super::*;
            use crate::kernel::number::Element;

            pub(super) fn run<E: Element>($($arg: $ty),*) $(-> $ret)? {
                match Set::chosen() {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a safe function but for the CPU features that it is compiled for, and `lanes` exists only
                    // where the CPU has every one of them; its arguments are passed on as they are.
                    Set::Avx512(lanes) => unsafe { avx512::<E>(lanes, $($arg),*) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Set::Avx2(lanes) => unsafe { avx2::<E>(lanes, $($arg),*) },
                    #[cfg(target_arch = "aarch64")]
                    // SAFETY: as above.
                    Set::Neon(lanes) => unsafe { neon::<E>(lanes, $($arg),*) },
                    Set::Plain => generic::$name::<E, Plain>(Plain, $($arg),*),
                }
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi,avx2,bmi2,fma,f16c")]
            fn avx512<E: Element>(lanes: avx512::Avx512, $($arg: $ty),*) $(-> $ret)? {
                generic::$name::<E, avx512::Avx512>(lanes, $($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi2,fma,f16c")]
            fn avx2<E: Element>(lanes: avx2::Avx2, $($arg: $ty),*) $(-> $ret)? {
                generic::$name::<E, avx2::Avx2>(lanes, $($arg),*)
            }

            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon<E: Element>(lanes: neon::Neon, $($arg: $ty),*) $(-> $ret)? {
                generic::$name::<E, neon::Neon>(lanes, $($arg),*)
            }
        }
    )*};
}

kernels! {
    /// See [`generic::quantize`].
    fn quantize(rows: &Rows, tile: &[u8], codes: &mut [u8], scales: &mut [u8]) -> bool;
    /// See [`generic::dequantize`].
    fn dequantize(rows: &Rows, codes: &[u8], scales: &[u8], tile: &mut [u8]);
    /// See [`generic::pack_nibbles`]; the element type does not matter.
    fn pack_nibbles(codes: &mut [u8], elements: usize);
    /// See [`generic::scatter`].
    fn scatter(rows: &Rows, plain: &[u8], tile: &mut [u8]);
    /// See [`generic::gather`].
    fn gather(rows: &Rows, tile: &[u8], plain: &mut [u8]);
    /// See [`generic::split`].
    fn split(rows: &Rows, tile: &[u8], codes: &mut [u8]);
    /// See [`generic::merge`].
    fn merge(rows: &Rows, codes: &[u8], tile: &mut [u8]);
}
