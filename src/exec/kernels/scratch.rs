//! Memory that a thread keeps from one kernel to the next.
//!
//! Fresh allocations of this size come from the operating system and cost a page fault per 4 KiB,
//! more than some of the kernels themselves.

use std::cell::RefCell;

/// A cache line of values, so that buffers start on one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _values: [f32; 16],
}

/// Buffers above this many values are given back at once.
const KEPT: usize = 16 << 20;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `len` values, aligned to 64 bytes, whose contents are arbitrary.
pub(crate) fn with<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = BUFFERS
        .with_borrow_mut(|buffers| buffers.pop())
        .unwrap_or_default();
    let lines = len.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line { _values: [0.0; 16] });
    }
    let result = work(&mut flat(&mut buffer)[..len]);
    if buffer.len() * 16 <= KEPT {
        BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
    }
    result
}

#[allow(unsafe_code)]
fn flat(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a `Line` is 16 values without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nested_buffers_are_distinct_and_aligned() {
        super::with(100, |a| {
            a.fill(1.0);
            super::with(1000, |b| b.fill(2.0));
            assert_eq!(a.len(), 100);
            assert!(a.iter().all(|&x| x == 1.0));
            assert_eq!(a.as_ptr().addr() % 64, 0);
        });
    }
}
