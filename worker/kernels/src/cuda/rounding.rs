//! Launches of what rounds f32 to fewer bits, for products that take them: to the nearest, to the even one of two as near.

use super::{Bytes, Call};

/// `count` elements of each of S runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounded {
    /// S.
    pub runs: usize,
    pub count: usize,
    /// From run to run, of what is read and what is written, in elements.
    pub strides: [usize; 2],
}

impl Rounded {
    /// Elements from the first to the last.
    fn reach(self, stride: usize) -> usize {
        assert!(self.runs == 1 || stride >= self.count, "runs of {} overlap at a distance of {stride}", self.count);
        (self.runs - 1) * stride + self.count
    }

    fn call<T: 'static, B: Bytes>(self, kernel: &'static str, [from, to]: [B; 2]) -> Call<B> {
        let [apart, written] = self.strides;
        Call::each(kernel, self.count, self.runs)
            .floats(from, self.reach(apart))
            .long(apart)
            .long(self.count)
            .buffer::<T>(to, self.reach(written))
            .long(written)
    }

    /// To bf16, 16 bits each: 7 bits of mantissa.
    pub fn to_bf16<B: Bytes>(self, places: [B; 2]) -> Call<B> {
        self.call::<u16, B>("to_bf16", places)
    }

    /// To TF32, 10 bits of mantissa, as f32 whose other bits are zeros. The places may be one.
    pub fn to_tf32<B: Bytes>(self, places: [B; 2]) -> Call<B> {
        self.call::<f32, B>("to_tf32", places)
    }
}
