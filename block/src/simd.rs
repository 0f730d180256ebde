//! Each kernel compiled for the instruction sets we know, and the choice at run time. On Arm the base instruction set
//! (NEON) is already the fast one. This is the only file of the crate with `unsafe` in it: calls of functions that need
//! CPU features, right after asking the CPU for them.
#![allow(unsafe_code)]

use crate::geometry::ElementType;
use crate::kernel::{self, Rows};
use crate::number::{Bf16, Element, F16, F32};

/// Whether the AVX2 copies may run. The list is that of the `target_feature` lines below.
#[cfg(target_arch = "x86_64")]
fn avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("bmi2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
}

/// What the kernels run on here, for tests and benchmarks to name.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    return if avx2() { "avx2" } else { "sse2" };
    #[cfg(target_arch = "aarch64")]
    return if std::arch::is_aarch64_feature_detected!("neon") { "neon" } else { "scalar" };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    "scalar"
}

macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(element: ElementType, $($arg: $ty),*) $(-> $ret)? {
            match element {
                ElementType::Bf16 => chosen::$name::<Bf16>($($arg),*),
                ElementType::F16 => chosen::$name::<F16>($($arg),*),
                ElementType::F32 => chosen::$name::<F32>($($arg),*),
            }
        }
    )*

    mod chosen {
        use super::*;
        $(pub(super) fn $name<E: Element>($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            if avx2() {
                #[target_feature(enable = "avx2,bmi2,fma,f16c")]
                fn wide<E: Element>($($arg: $ty),*) $(-> $ret)? {
                    kernel::$name::<E>($($arg),*)
                }
                // SAFETY: `wide` is a safe function but for the CPU features that it is compiled for, and `avx2` has
                // just said that this CPU has every one of them; its arguments are passed on as they are.
                return unsafe { wide::<E>($($arg),*) };
            }
            kernel::$name::<E>($($arg),*)
        })*
    }};
}

kernels! {
    /// See [`kernel::quantize`].
    fn quantize(rows: &Rows, tile: &[u8], codes: &mut [u8], scales: &mut [u8]) -> bool;
    /// See [`kernel::dequantize`].
    fn dequantize(rows: &Rows, codes: &[u8], scales: &[u8], tile: &mut [u8]);
    /// See [`kernel::pack_nibbles`]; the element type does not matter.
    fn pack_nibbles(codes: &mut [u8], elements: usize);
    /// See [`kernel::split`].
    fn split(rows: &Rows, tile: &[u8], codes: &mut [u8]);
    /// See [`kernel::merge`].
    fn merge(rows: &Rows, codes: &[u8], tile: &mut [u8]);
}
