//! Hot loops compiled once per instruction set, the best one chosen when called.
//!
//! The program is built for plain x86-64, so that one binary runs anywhere; without this, LLVM would vectorise our
//! loops for SSE2 only, a quarter (AVX2) or an eighth (AVX-512) of what the machine can do.

#[cfg(target_arch = "x86_64")]
use crate::float::tree_avx2;
use crate::{
    float::{Float, lane_sum, tree_sum},
    lanes::{self, Vector, places},
    tile,
    transpose::{self, SIDE},
};
#[cfg(target_arch = "x86_64")]
use std::any::TypeId;

/// An instruction set a loop is compiled for: plain loops, unless there is a better way.
pub trait Isa: Sized {
    /// `a·b + c` in one rounding where the machine has the instruction, in two where it has not (the library call that
    /// imitates it is a hundred times slower). Results may so differ between kinds of machines.
    fn mul_add<T: Float>(a: T, b: T, c: T) -> T;

    /// A tile of a product.
    ///
    /// # Safety
    /// As for `tile::Operands::tile`, on a machine that has the instruction set.
    #[inline(always)]
    unsafe fn tile<T: Float>(operands: tile::Operands<T>) {
        // SAFETY: as the caller promises.
        unsafe { operands.tile::<Plain>() }
    }

    /// A tile of a product of as many matrices as there are lanes.
    ///
    /// # Safety
    /// As for `lanes::Operands::tile`, on a machine that has the instruction set.
    #[inline(always)]
    unsafe fn lanes<T: Float>(operands: lanes::Operands<T>) {
        // SAFETY: as the caller promises.
        unsafe { operands.tile::<Plain>() }
    }

    /// Some elements of each lane as vectors.
    ///
    /// # Safety
    /// As for `places::gather_plain`, on a machine that has the instruction set.
    #[inline(always)]
    unsafe fn gather<T: Float>(from: impl Fn(usize) -> *const T, to: *mut Vector<T>) {
        // SAFETY: as the caller promises.
        unsafe { places::gather_plain(from, to) }
    }

    /// The opposite.
    ///
    /// # Safety
    /// As for `places::scatter_plain`, on a machine that has the instruction set.
    #[inline(always)]
    unsafe fn scatter<T: Float>(from: *const Vector<T>, to: impl Fn(usize) -> *mut T) {
        // SAFETY: as the caller promises.
        unsafe { places::scatter_plain(from, to) }
    }

    /// A block of a transpose.
    ///
    /// # Safety
    /// As for `transpose::plain`, on a machine that has the instruction set.
    #[inline(always)]
    unsafe fn transpose<T: Float>(rows: [*const T; SIDE], to: *mut T, distance: usize) {
        // SAFETY: as the caller promises.
        unsafe { transpose::plain(rows, to, distance) }
    }

    /// `Σ term(…)` over the elements of equally long slices, in the same order on every machine.
    #[inline(always)]
    fn sum<S: Float, T: Float, const N: usize>(slices: [&[S]; N], term: impl Fn([S; N]) -> T) -> T {
        lane_sum(slices, term, tree_sum)
    }
}

/// Any processor.
pub struct Plain;

impl Isa for Plain {
    #[inline(always)]
    fn mul_add<T: Float>(a: T, b: T, c: T) -> T {
        a * b + c
    }
}

/// Is the type f32? What is written by hand is for that one.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn is_f32<T: Float>() -> bool {
    TypeId::of::<T>() == TypeId::of::<f32>()
}

macro_rules! x86 {
    ($name:ident, $tile:ident, $gather:ident, $scatter:ident) => {
        #[cfg(target_arch = "x86_64")]
        pub struct $name;

        // SAFETY, of all: this is called on a machine that has the instruction set (AVX-512 has AVX2), with the type that it is
        // written for; the rest as the caller promises.
        #[cfg(target_arch = "x86_64")]
        impl Isa for $name {
            #[inline(always)]
            fn mul_add<T: Float>(a: T, b: T, c: T) -> T {
                a.fused_mul_add(b, c)
            }

            #[inline(always)]
            unsafe fn tile<T: Float>(operands: tile::Operands<T>) {
                // SAFETY: as above.
                unsafe { if is_f32::<T>() { operands.cast().$tile() } else { Plain::tile(operands) } }
            }

            #[inline(always)]
            unsafe fn lanes<T: Float>(operands: lanes::Operands<T>) {
                // SAFETY: as above.
                unsafe { if is_f32::<T>() { operands.cast().$tile() } else { Plain::lanes(operands) } }
            }

            #[inline(always)]
            unsafe fn gather<T: Float>(from: impl Fn(usize) -> *const T, to: *mut Vector<T>) {
                // SAFETY: as above.
                unsafe {
                    if is_f32::<T>() {
                        places::$gather(|lane| from(lane).cast(), to.cast());
                    } else {
                        Plain::gather(from, to);
                    }
                }
            }

            #[inline(always)]
            unsafe fn scatter<T: Float>(from: *const Vector<T>, to: impl Fn(usize) -> *mut T) {
                // SAFETY: as above.
                unsafe {
                    if is_f32::<T>() {
                        places::$scatter(from.cast(), |lane| to(lane).cast());
                    } else {
                        Plain::scatter(from, to);
                    }
                }
            }

            #[inline(always)]
            unsafe fn transpose<T: Float>(rows: [*const T; SIDE], to: *mut T, distance: usize) {
                // SAFETY: as above.
                unsafe {
                    if is_f32::<T>() {
                        transpose::avx2::<f32>(rows.map(<*const T>::cast), to.cast(), distance);
                    } else {
                        Plain::transpose(rows, to, distance);
                    }
                }
            }

            #[inline(always)]
            fn sum<S: Float, T: Float, const N: usize>(slices: [&[S]; N], term: impl Fn([S; N]) -> T) -> T {
                lane_sum(slices, term, |lanes| {
                    if is_f32::<T>() {
                        // SAFETY: as above. Any f32 is the same as f64 and back.
                        T::of(unsafe { tree_avx2(&*std::ptr::from_ref(lanes).cast()) }.into())
                    } else {
                        tree_sum(lanes)
                    }
                })
            }
        }
    };
}
x86!(Avx512, tile_avx512, gather_avx512, scatter_avx512);
x86!(Avx2, tile_avx2, gather_avx2, scatter_avx2);

/// Declares `fn name<T: Float>(…)` whose body is compiled for AVX-512, AVX2 + FMA and the plain target. The body may
/// use `T` and `M: Isa`; what it calls must be `#[inline(always)]`, so that it is compiled with the same features.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$T:ident: Float, $M:ident: Isa>($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<$T: $crate::float::Float>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$T: $crate::float::Float, $M: $crate::dispatch::Isa>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512<$T: $crate::float::Float>($($arg: $ty),*) $(-> $ret)? {
                    body::<$T, $crate::dispatch::Avx512>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$T: $crate::float::Float>($($arg: $ty),*) $(-> $ret)? {
                    body::<$T, $crate::dispatch::Avx2>($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("fma")
                {
                    // SAFETY: the machine has just been asked for the features this was compiled for (AVX-512 has AVX2).
                    return unsafe { avx512::<$T>($($arg),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: the machine has just been asked for the features this was compiled for.
                    return unsafe { avx2::<$T>($($arg),*) };
                }
            }
            body::<$T, $crate::dispatch::Plain>($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// Calls a test's generic function with each instruction set that the machine has.
#[cfg(test)]
macro_rules! with_each_isa {
    ($check:ident) => {
        $check::<$crate::dispatch::Plain>();
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                $check::<$crate::dispatch::Avx2>();
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                $check::<$crate::dispatch::Avx512>();
            }
        }
    };
}
#[cfg(test)]
pub(crate) use with_each_isa;
