//! Launches of causal attention.

use super::{Bytes, Call};

/// Sequences of all runs, and what one block may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    pub sequences: usize,
    /// Of each, T.
    pub tokens: usize,
    /// Of the model, d.
    pub width: usize,
    pub heads: usize,
    /// Bytes of shared memory that a block may have: 166 912 on sm_80, 232 448 on sm_90.
    pub shared: usize,
}

impl Attention {
    fn head(self) -> usize {
        self.width / self.heads
    }

    fn len(self) -> usize {
        let rows = self.sequences.checked_mul(self.tokens);
        rows.and_then(|rows| rows.checked_mul(self.width)).expect("activations fit the address space")
    }

    /// Queries that a block takes at a time, with so many (chunk, head) and (chunk, T) matrices, and the bytes it needs.
    fn chunk(self, matrices: usize) -> (usize, usize) {
        let (head, tokens) = (self.head(), self.tokens);
        let bytes = |chunk: usize| (tokens * (head | 1) + matrices * chunk * (head + tokens)) * size_of::<f32>();
        let fits = (1..=tokens).rev().find(|&chunk| bytes(chunk) <= self.shared);
        let chunk = fits.unwrap_or_else(|| {
            panic!(
                "attention of {tokens} tokens and heads of {head} needs {} bytes a block, of {}",
                bytes(1),
                self.shared
            )
        });
        (chunk, bytes(chunk))
    }

    fn call<B: Bytes>(self, kernel: &'static str, matrices: usize, inputs: impl FnOnce(Call<B>) -> Call<B>) -> Call<B> {
        assert_eq!(self.head() * self.heads, self.width, "heads share the width evenly");
        let (chunk, bytes) = self.chunk(matrices);
        let call = Call::new(kernel, [self.sequences * self.heads, 1, 1]).shared(bytes);
        inputs(call).int(self.tokens).int(self.width).int(self.heads).int(chunk)
    }

    /// (sequences, T, 3d) to (sequences, T, d).
    ///
    /// # Panics
    /// Where not one query fits the shared memory.
    pub fn forward<B: Bytes>(self, [qkv, out]: [B; 2]) -> Call<B> {
        self.call("attention_forward", 1, |call| call.floats(qkv, 3 * self.len())).floats(out, self.len())
    }

    /// The gradient by `qkv`, given that by the output.
    ///
    /// # Panics
    /// Where not one query fits the shared memory.
    pub fn backward<B: Bytes>(self, [qkv, grad, dqkv]: [B; 3]) -> Call<B> {
        let inputs = |call: Call<B>| call.floats(qkv, 3 * self.len()).floats(grad, self.len());
        self.call("attention_backward", 2, inputs).floats(dqkv, 3 * self.len())
    }
}
