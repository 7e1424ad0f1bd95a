//! Keys as attention multiplies by them.

use super::super::gemm::{self, PANEL};
use super::super::vector::Isa;

/// Keys of one sequence: `[T, heads · head_dim]`, by rows or in panels.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// `[T, heads · head_dim]`, packed anew for each tile of queries.
    Rows(&'a [f32]),
    /// As a cache keeps them.
    Cache(&'a KeyCache),
}

impl Keys<'_> {
    /// How many there are, of rows `width` wide.
    pub(super) fn count(&self, width: usize) -> usize {
        match self {
            Keys::Rows(rows) => rows.len().checked_div(width).unwrap_or(0),
            Keys::Cache(cache) => cache.len,
        }
    }
}

/// Keys that grow, packed as they come: `[panel, head, head_dim, 48]`.
///
/// The lanes of a panel are neighbouring keys, so that products with queries need no packing,
/// which for a query alone costs more than the product. Lanes behind the last key are arbitrary.
#[derive(Clone, Debug, Default)]
pub struct KeyCache {
    heads: usize,
    head_dim: usize,
    len: usize,
    data: Vec<f32>,
}

impl KeyCache {
    /// An empty cache.
    pub fn new(heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            head_dim,
            len: 0,
            data: Vec::new(),
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values that it holds.
    pub fn values(&self) -> usize {
        self.data.len()
    }

    /// Whether it has keys of this shape.
    pub fn fits(&self, heads: usize, head_dim: usize) -> bool {
        (self.heads, self.head_dim) == (heads, head_dim)
    }

    /// Appends keys `[n, heads · head_dim]`; what is no whole row is left out.
    pub fn push(&mut self, rows: &[f32]) {
        let (width, panel) = (self.panel_len() / PANEL, self.panel_len());
        let count = rows.len().checked_div(width).unwrap_or(0);
        let end = self.len + count;
        let isa = Isa::detect();
        self.data.resize(end.div_ceil(PANEL) * panel, 0.0);
        let mut at = self.len;
        while at < end {
            let (lane, rows) = (at % PANEL, &rows[(at - self.len) * width..]);
            let lanes = (PANEL - lane).min(end - at);
            let out = &mut self.data[at / PANEL * panel..][..panel];
            for (head, out) in out.chunks_exact_mut(self.head_dim * PANEL).enumerate() {
                let rows = &rows[head * self.head_dim..];
                if lanes == PANEL {
                    gemm::pack_panel(isa, rows, width, lanes, self.head_dim, out);
                    continue;
                }
                for i in 0..lanes {
                    let row = &rows[i * width..][..self.head_dim];
                    for (d, key) in row.iter().enumerate() {
                        out[d * PANEL + lane + i] = *key;
                    }
                }
            }
            at += lanes;
        }
        self.len = end;
    }

    /// Forgets all but the first `len` keys.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        let panels = self.len.div_ceil(PANEL);
        self.data.truncate(panels * self.panel_len());
    }

    /// `[head_dim, 48]`: keys `key..` of a head; `key` is a multiple of 48.
    pub(super) fn panel(&self, key: usize, head: usize) -> &[f32] {
        let len = self.head_dim * PANEL;
        let at = key / PANEL * self.panel_len() + head * len;
        self.data.get(at..at + len).unwrap_or_default()
    }

    fn panel_len(&self) -> usize {
        self.heads
            .saturating_mul(self.head_dim)
            .saturating_mul(PANEL)
    }
}
