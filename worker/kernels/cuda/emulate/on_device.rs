//! The same launches on a GPU, where there is one: its bytes must be those of the emulation.

use super::Place;
use taskvec_kernels::cuda::{Call, device::Device};

thread_local! {
    /// Of each test, since a context belongs to a thread.
    static DEVICE: Option<Device> = Device::new(0)
        .inspect_err(|error| eprintln!("\nSKIPPED: kernels are not executed on a GPU: {error}\n"))
        .ok();
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
        unsafe { device.launch(&call) }.unwrap_or_else(|error| panic!("{} on the GPU: {error}", call.kernel));
        let mut rest = after;
        for (i, buffer) in held.iter().enumerate() {
            let got = device.read(buffer).unwrap_or_else(|error| panic!("{} on the GPU: {error}", call.kernel));
            let (want, others) = rest.split_at(got.len());
            rest = others;
            let other = got.iter().zip(want).position(|(a, b)| a != b);
            assert_eq!(other, None, "{}: the GPU's buffer {i} is another from this byte on", call.kernel);
        }
    });
}
