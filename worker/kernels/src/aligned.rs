//! The process's memory, at the beginning of a cache line wherever it holds more than a few.
//!
//! malloc aligns to 16 bytes, and large blocks begin 16 bytes into a page: then each vector of AVX-512 lies in two
//! lines, and costs two accesses. candle's tensors are plain `Vec`s, so it is the allocator that must know.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
};

#[global_allocator]
static MEMORY: Aligned = Aligned;

/// A cache line, as long as the longest vector.
const LINE: usize = 64;
/// Bytes from which on memory begins with a line: a few lines.
const LEAST: usize = 512;
/// What malloc gives, and more than the distance to a block's beginning takes.
const GIVEN: usize = 16;

/// The system's allocator, of which it asks for a line more. Just before memory that begins with a line stands how far it lies
/// behind the beginning of the system's block.
struct Aligned;

/// The system's block for memory of this layout; nothing where that is given as it is.
fn block(layout: Layout) -> Option<Layout> {
    let in_lines = layout.size() >= LEAST && layout.align() <= LINE;
    Layout::from_size_align(layout.size() + LINE, layout.align().max(GIVEN)).ok().filter(|_| in_lines)
}

/// From a block's beginning to the line after it, `GIVEN` to `LINE` bytes.
fn distance(block: *mut u8) -> usize {
    LINE - block.addr() % LINE
}

/// # Safety
/// `block` is one of the system's for memory in lines, or null.
unsafe fn begin(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    let distance = distance(block);
    // SAFETY: blocks are a line longer than what is asked for, and so aligned that `distance` has room before the line.
    unsafe {
        let memory = block.add(distance);
        memory.cast::<usize>().sub(1).write(distance);
        memory
    }
}

/// How far memory that [`begin`] gave lies behind its block's beginning.
///
/// # Safety
/// `memory` is from [`begin`] and not null.
unsafe fn distance_of(memory: *mut u8) -> usize {
    // SAFETY: as `begin` left it.
    unsafe { memory.cast::<usize>().sub(1).read() }
}

// SAFETY: memory is the system's, or lies within a block of the system's, which is as large as `block` says for its layout and
// given back as the same.
unsafe impl GlobalAlloc for Aligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a block is not empty if its memory is not.
        unsafe { block(layout).map_or_else(|| System.alloc(layout), |block| begin(System.alloc(block))) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { block(layout).map_or_else(|| System.alloc_zeroed(layout), |block| begin(System.alloc_zeroed(block))) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: whoever gives memory back says the layout that it was asked for with, so it has a block now as then.
        unsafe {
            match block(layout) {
                None => System.dealloc(memory, layout),
                Some(block) => System.dealloc(memory.sub(distance_of(memory)), block),
            }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size` makes a layout with this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let kept = size.min(layout.size());
        // SAFETY: as for `dealloc`; `kept` bytes are there before and after, wherever the block goes.
        unsafe {
            match (block(layout), block(new)) {
                (None, None) => System.realloc(memory, layout, size),
                (Some(old), Some(new)) => {
                    let before = distance_of(memory);
                    let block = System.realloc(memory.sub(before), old, new.size());
                    if !block.is_null() {
                        ptr::copy(block.add(before), block.add(distance(block)), kept);
                    }
                    begin(block)
                }
                _ => {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(memory, moved, kept);
                        self.dealloc(memory, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins_with_a_line<T>(memory: &[T]) -> bool {
        memory.as_ptr().addr().is_multiple_of(LINE)
    }

    #[test]
    fn memory_of_more_than_a_few_lines_begins_with_one() {
        let kept: Vec<Vec<u8>> = (LEAST..3 * LEAST).chain([1 << 20, (64 << 20) + 7]).map(|n| vec![1; n]).collect();
        assert!(kept.iter().all(|memory| begins_with_a_line(memory)));
        assert!(begins_with_a_line(&vec![0f32; 1000]) && begins_with_a_line(&vec![0f64; 1000]));
        let zeroed: Vec<Vec<u8>> = (1..3 * LEAST).map(|n| vec![0; n]).collect();
        assert!(zeroed.iter().flatten().all(|&x| x == 0), "memory that was given back is zeroed");
    }

    /// Between sizes with and without lines, and such that the system moves whole pages.
    #[test]
    fn memory_that_grows_and_shrinks_keeps_what_it_holds() {
        let sizes = [3, LEAST - 1, LEAST, LEAST + 1, 5000, 40 << 20, 70 << 20, 41 << 20, 9000, 700, 512, 511, 90, 600];
        let at = |i: usize| (i * 31 % 251) as u8;
        let mut others = Vec::new();
        for round in 0..20 {
            let (mut memory, mut before) = (Vec::<u8>::new(), 0);
            for size in sizes {
                memory.truncate(size);
                memory.shrink_to_fit();
                memory.reserve_exact(size - memory.len());
                assert!(memory.iter().enumerate().all(|(i, &x)| x == at(i)), "{before} to {size}");
                assert!(memory.capacity() < LEAST || begins_with_a_line(&memory), "{before} to {size}");
                memory.extend((memory.len()..size).map(at));
                before = size;
                others.push(vec![0u8; 16 * round + 1]);
            }
        }
    }

    #[test]
    fn what_wants_more_than_a_line_gets_it() {
        #[repr(align(4096))]
        struct Page([u8; 4096]);
        let mut pages: Vec<Page> = (0..3).map(|i| Page([i; 4096])).collect();
        pages.extend((3..40).map(|i| Page([i; 4096])));
        assert!(
            pages.iter().zip(0..).all(|(page, i)| ptr::from_ref(page).addr().is_multiple_of(4096) && page.0[9] == i)
        );
    }
}
