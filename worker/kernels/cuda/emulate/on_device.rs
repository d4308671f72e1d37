//! The same launches on a GPU, where there is one: its bytes must be those of the emulation.
#![allow(unsafe_code, reason = "part of worker/kernels, whichever crate's tests it is built with")]

use super::Place;
use std::{io::Write, sync::Once};
use taskvec_kernels::cuda::{Call, device::Device};

thread_local! {
    /// Of each test, since a context belongs to a thread.
    static DEVICE: Option<Device> = Device::new(0)
        .inspect_err(said_once)
        .ok();
}

/// Why there is none, to whoever runs the tests, once: what a test that passes prints is hidden.
fn said_once(error: &impl std::fmt::Display) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let said = format_args!("\nSKIPPED: kernels are not executed on a GPU: {error}\n");
        std::io::stderr().write_fmt(said).expect("somewhere to say it");
    });
}

/// Executes `call` on `buffers`, which must then hold `after`, one after the other.
pub fn assert_same(call: &Call<Place>, buffers: &[Vec<u8>], after: &[u8]) {
    DEVICE.with(|device| {
        let Some(device) = device else { return };
        let held: Vec<_> = buffers
            .iter()
            .map(|bytes| {
                let mut buffer = device.zeros(bytes.len()).expect("memory on the GPU");
                device.write(&mut buffer, bytes).expect("a copy to the GPU");
                buffer
            })
            .collect();
        let call = call.map(|place| held[place.buffer].place().behind(place.from / 4));
        // SAFETY: the buffers live to the end of this function, which waits; tests give indices that are within.
        unsafe { device.launch(&call) }.unwrap_or_else(|error| panic!("{} on the GPU: {error}", call.kernel()));
        let mut rest = after;
        for (i, buffer) in held.iter().enumerate() {
            let got = device.read(buffer).unwrap_or_else(|error| panic!("{} on the GPU: {error}", call.kernel()));
            let (want, others) = rest.split_at(got.len());
            rest = others;
            let other = got.chunks(8).zip(want.chunks(8)).position(|(a, b)| !alike(a, b));
            assert_eq!(other, None, "{}: the GPU's buffer {i} is another from this word of 64 bits on", call.kernel());
        }
    });
}

/// The same bytes, or NaN on both sides: which of the many NaN it is differs between processors.
fn alike(a: &[u8], b: &[u8]) -> bool {
    let halves = |a: &[u8], b: &[u8]| a == b || [a, b].iter().all(|x| float(x).is_some_and(f32::is_nan));
    halves(&a[..4.min(a.len())], &b[..4.min(b.len())]) && halves(&a[4.min(a.len())..], &b[4.min(b.len())..])
        || [a, b].iter().all(|x| double(x).is_some_and(f64::is_nan))
}

fn float(bytes: &[u8]) -> Option<f32> {
    bytes.try_into().ok().map(f32::from_le_bytes)
}

fn double(bytes: &[u8]) -> Option<f64> {
    bytes.try_into().ok().map(f64::from_le_bytes)
}
